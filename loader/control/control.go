// Package control lets other processes of the machine talk to a node: HTTP with JSON over a unix
// socket that only the node's user can open. Server answers, Client asks; a Client's errors are of
// the classes that the node's were.
//
//	POST /v1/publish    {"model":"org/name@rev","target":"/path","layout":"plain"}   a loader.Published
//	POST /v1/unpublish  {"target":"/path"}                          {}
//	POST /v1/wait       {"model":"org/name@rev"}                    lines of {"progress":…}, then {"done":true} or {"error":…}
//	POST /v1/verify     {"model":"org/name@rev"}                    lines of {"checked":…}, with what was found wrong since the last one, then {"done":true} or {"error":…}
//	GET  /v1/order?model=org/name@rev                               what package order has of the model
//	GET  /v1/status                                                 a loader.Status
//
// An error is {"error":{"kind":…,"message":…}} with a status that fits; see kinds.
package control

import (
	"context"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/manifest"
)

// Node is what the socket gives access to; [loader.Loader] is one.
type Node interface {
	PublishAs(ctx context.Context, ref manifest.Reference, target string, layout loader.Layout) (loader.Published, error)
	Unpublish(ctx context.Context, target string) error
	Wait(ctx context.Context, ref manifest.Reference, progress func(loader.Progress)) error
	Verify(ctx context.Context, ref manifest.Reference, progress func(loader.Check)) error
	Order(ctx context.Context, ref manifest.Reference) ([]byte, error)
	Status() loader.Status
}

// Bounds of what is read from the other side, in bytes.
const (
	maxRequest = 64 << 10
	maxAnswer  = 64 << 20 // a status names every model and every target
	maxLine    = 1 << 20
)

type publishRequest struct {
	Model  string `json:"model"`
	Target string `json:"target"`
	Layout string `json:"layout,omitempty"`
}

type unpublishRequest struct {
	Target string `json:"target"`
}

// modelRequest is a wait or a verify.
type modelRequest struct {
	Model string `json:"model"`
}

// line is one line of the answer to a wait or a verify.
type line struct {
	Progress *loader.Progress `json:"progress,omitempty"`
	Checked  *loader.Check    `json:"checked,omitempty"`
	Done     bool             `json:"done,omitempty"`
	Error    *wireError       `json:"error,omitempty"`
}

type errorAnswer struct {
	Error *wireError `json:"error"`
}
