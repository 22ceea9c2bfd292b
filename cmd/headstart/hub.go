package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/headstart-serving/headstart/stager/bucket"
	"github.com/headstart-serving/headstart/stager/hub"
	"github.com/headstart-serving/headstart/stager/hub/gemma"
	"github.com/headstart-serving/headstart/stager/hub/xorb"
)

func newHubCommand(p process) *cobra.Command {
	var models, gated []string
	var dir, addr, xet string
	var bridge int64
	var verbose bool
	var seed uint64
	var rate int64
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Serve the Hugging Face Hub's protocol: synthetic Gemma models, or a folder's repositories",
		Long: `hub serves model repositories on the wire of the Hugging Face Hub until it is interrupted.
Its URL is the first line on stdout, that of the host which sends large files is the second one. --model serves a synthetic Gemma 3 with the file names,
shapes and sizes of the real one and a working tokenizer, made while it is sent;
--dir serves the folders ORG/NAME below a folder. With --xet, LFS files are offered by their content
too, as the Hub does it; then each is read once when somebody first lists or asks for it.`,
		Example: `  headstart hub --model gemma-3-270m --model gemma-3-27b
  headstart hub --dir ~/models --listen 127.0.0.1:8080
  HF_ENDPOINT=http://127.0.0.1:8080 hf download google/gemma-3-270m-it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(models) == 0 && dir == "" {
				return usageError{errors.New("nothing to serve: give --model or --dir")}
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			cfg := hub.Config{Policies: map[string]hub.Policy{}, Log: p.logger(level)}
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
			if cfg.Xet, err = xetConfig(xet, bridge); err != nil {
				return usageError{err}
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
			_, port, err := net.SplitHostPort(cdn.l.Addr().String())
			if err != nil {
				return err
			}
			s.SetCDN("http://:" + port) // at whatever address the client knows this machine by
			if cfg.Xet == nil {
				return p.announce(cmd.Context(), addr, s.Handler(), cdn)
			}
			cas, err := listen(cmd.Context(), net.JoinHostPort(host, "0"), s.CAS())
			if err != nil {
				return err
			}
			s.SetCAS(cas.URL())
			return p.announce(cmd.Context(), addr, s.Handler(), cdn, cas)
		},
	}
	cmd.Flags().StringArrayVar(&models, "model", nil, "synthetic `NAME`: gemma-3-270m, -1b, -4b, -12b or -27b; may repeat")
	cmd.Flags().Uint64Var(&seed, "seed", 0, "what the synthetic weights are made from")
	cmd.Flags().StringVar(&dir, "dir", "", "`FOLDER` of repositories ORG/NAME")
	cmd.Flags().StringArrayVar(&gated, "gated", nil, "`REPO` whose files nobody was granted; may repeat")
	cmd.Flags().StringVar(&xet, "xet", "", "offer Xet with chunks packed so: none, lz4, bg4 or mixed `PACKING`")
	cmd.Flags().Int64Var(&bridge, "xet-only-above", 0, "files of more than `BYTES` are to be had through Xet alone; 0 is the Hub's limit of 50 GB")
	cmd.Flags().BoolVar(&verbose, "log-requests", false, "log every request on stderr, without its query: a signed URL is a key")
	cmd.Flags().Int64Var(&rate, "rate", 0, "`BYTES` a second of large files at most; 0 for no limit")
	cmd.Flags().StringVar(&addr, "listen", "127.0.0.1:0", "`HOST:PORT` to listen on; port 0 takes a free one")
	return cmd
}

// xetConfig reads --xet and --xet-only-above.
func xetConfig(packing string, bridge int64) (*hub.Xet, error) {
	if packing == "" {
		if bridge != 0 {
			return nil, errors.New("--xet-only-above needs --xet")
		}
		return nil, nil
	}
	schemes, err := xorb.ParseScheme(packing)
	if err != nil {
		return nil, fmt.Errorf("--xet: %w", err)
	}
	return &hub.Xet{Packing: xorb.Config{Schemes: schemes}, Bridge: bridge}, nil
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
