package main

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"
)

// eventsFlag adds --json to a command that prints events: one object a line, the last one the result or
// an error, and nothing else on stdout.
func eventsFlag(cmd *cobra.Command) *bool {
	asJSON := cmd.Flags().Bool("json", false, "print events on stdout, one JSON object a line; the last one is the result, or an error with its exit code")
	cmd.Annotations = map[string]string{"events": "json"}
	return asJSON
}

// failed prints err as the last event where events were asked for.
func (p process) failed(ctx context.Context, cmd *cobra.Command, err error) {
	if asJSON, _ := cmd.Flags().GetBool("json"); !asJSON || cmd.Annotations["events"] != "json" {
		return
	}
	// A write that fails changes nothing: the exit code tells as much.
	_ = json.NewEncoder(p.Stdout).Encode(errorEvent{"error", exitCode(ctx, err), oneLine(message(ctx, err))})
}

type errorEvent struct {
	Event string `json:"event"`
	Code  int    `json:"code"`
	Error string `json:"error"`
}
