package main

import (
	"errors"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/gemma"
)

func newHubCommand(p process) *cobra.Command {
	var models, gated []string
	var dir, addr string
	var seed uint64
	var rate int64
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Serve the Hugging Face Hub's protocol: synthetic Gemma models, or a folder's repositories",
		Long: `hub serves model repositories on the wire of the Hugging Face Hub until it is interrupted.
Its URL is the first line on stdout. --model serves a synthetic Gemma 3 with the file names,
shapes and sizes of the real one and a working tokenizer, made while it is sent;
--dir serves the folders ORG/NAME below a folder.`,
		Example: `  headstart hub --model gemma-3-270m --model gemma-3-27b
  headstart hub --dir ~/models --listen 127.0.0.1:8080
  HF_ENDPOINT=http://127.0.0.1:8080 hf download google/gemma-3-270m-it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(models) == 0 && dir == "" {
				return usageError{errors.New("nothing to serve: give --model or --dir")}
			}
			cfg := hub.Config{Policies: map[string]hub.Policy{}, Log: p.logger(slog.LevelInfo)}
			for _, repo := range gated {
				cfg.Policies[repo] = hub.Policy{Gated: "manual"}
			}
			repos, err := syntheticRepos(models, seed)
			if err != nil {
				return usageError{err}
			}
			if dir != "" {
				if cfg.Find, err = hub.NewDir(dir); err != nil {
					return err
				}
			}
			s := hub.New(cfg, repos...)
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return usageError{err}
			}
			cdn, err := listen(cmd.Context(), net.JoinHostPort(host, "0"), bucket.Shape{Total: rate}.Handler(s.CDN()))
			if err != nil {
				return err
			}
			s.SetCDN(cdn.URL())
			return p.announce(cmd.Context(), addr, s.Handler(), cdn)
		},
	}
	cmd.Flags().StringArrayVar(&models, "model", nil, "synthetic `NAME`: gemma-3-270m, -1b, -4b, -12b or -27b; may repeat")
	cmd.Flags().Uint64Var(&seed, "seed", 0, "what the synthetic weights are made from")
	cmd.Flags().StringVar(&dir, "dir", "", "`FOLDER` of repositories ORG/NAME")
	cmd.Flags().StringArrayVar(&gated, "gated", nil, "`REPO` whose files nobody was granted; may repeat")
	cmd.Flags().Int64Var(&rate, "rate", 0, "`BYTES` a second of large files at most; 0 for no limit")
	cmd.Flags().StringVar(&addr, "listen", "127.0.0.1:0", "`HOST:PORT` to listen on; port 0 takes a free one")
	return cmd
}

// syntheticRepos makes a repository for each name: "gemma-3-1b", with or without google/ and -it.
func syntheticRepos(names []string, seed uint64) ([]hub.Repo, error) {
	var repos []hub.Repo
	for _, name := range names {
		size := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "google/"), "gemma-3-"), "-it")
		r, err := gemma.New(size, seed)
		if err != nil {
			return nil, err
		}
		repos = append(repos, r)
	}
	return repos, nil
}
