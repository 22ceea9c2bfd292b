package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
)

// mediaFlags adds the flags that say what a node's models lie on, and returns what reads them.
func mediaFlags(cmd *cobra.Command) func() (cache.Media, error) {
	medium := cmd.Flags().String("medium", string(cache.Auto), "`KIND` of what new models lie on: memory, disk, both, memory with a copy on the disk, or auto, memory if it has room and else the disk")
	var limit size
	cmd.Flags().Var(&limit, "memory-limit", "`SIZE` of the memory for models, such as 100GiB (default half of the machine's, or of the cgroup's limit)")
	return func() (cache.Media, error) {
		kind, err := cache.ParseKind(*medium)
		if err != nil {
			return cache.Media{}, usageError{fmt.Errorf("--medium: %w", err)}
		}
		if cmd.Flags().Changed("memory-limit") && (kind == cache.Disk || limit <= 0) {
			return cache.Media{}, usageError{errors.New("--memory-limit is the size of the memory for models: it is not 0, and not for --medium disk")}
		}
		return cache.Media{Use: kind, Memory: int64(limit)}, nil
	}
}

// writeMedia writes a table of a node's media, with tabs.
func writeMedia(w io.Writer, s loader.Status) {
	if len(s.Media) > 0 {
		fmt.Fprintln(w, "\nMEDIUM\tDIRECTORY\tSIZE\tAVAILABLE\tNEW MODELS\tHUGE PAGES")
	}
	for _, m := range s.Media {
		takes, huge := "no", m.HugePages
		if m.New {
			takes = "yes"
		}
		if huge == "" {
			huge = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Kind, m.Dir, bytesOf(int64(m.Size)), bytesOf(int64(m.Available)), takes, huge)
	}
}
