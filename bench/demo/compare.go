package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/headstart-serving/headstart/manifest"
)

// compare downloads the same objects from the same bucket to the same medium with one curl, file after
// file over one connection, and checks nothing: what a plain download costs.
func (d *demo) compare(ctx context.Context, bucketURL string) error {
	medium := d.place.cache
	if d.place.tmpfs != "" {
		medium = d.place.tmpfs // it stays when the node has ended, for the model is in it
	}
	dir, err := os.MkdirTemp(medium, "curl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	model := manifest.Model{Repo: d.repo.Name(), Commit: d.repo.Commit()}
	var files []download
	for _, f := range d.files {
		u := url.URL{Path: "/" + bucketName + "/" + model.Object(f.Path)}
		files = append(files, download{bucketURL + u.EscapedPath(), filepath.Join(dir, strings.ReplaceAll(f.Path, "/", "_")), f.Size})
	}
	result := &Download{Tool: "curl"}
	curl, err := exec.LookPath("curl")
	if err != nil {
		result.Tool = "one plain GET a file, by Go (there is no curl)"
	}
	d.say("the same bytes by %s, from the same bucket to the same medium", result.Tool)
	if err := d.held.copy.Release(); err != nil {
		return err
	}
	begin := d.now()
	if curl != "" {
		err = byCurl(ctx, curl, d.cfg.Environ, files)
	} else {
		err = byGet(ctx, files)
	}
	if err != nil {
		return fmt.Errorf("downloading with %s: %w", result.Tool, err)
	}
	end := d.now()
	result.Seconds, result.Rate = round(end-begin), rate(d.result.Bytes, end-begin)
	d.result.Curl = result
	d.span("curl", begin, end)
	for _, f := range files {
		if info, err := os.Stat(f.to); err != nil || info.Size() != f.size {
			return fmt.Errorf("%s did not bring all of %s", result.Tool, f.from)
		}
	}
	return nil
}

type download struct {
	from, to string
	size     int64
}

// byCurl runs one curl for all files. Its list comes on stdin: it may be longer than a command line.
func byCurl(ctx context.Context, curl string, environ []string, files []download) error {
	var list strings.Builder
	for _, f := range files {
		fmt.Fprintf(&list, "url = %q\noutput = %q\n", f.from, f.to)
	}
	cmd := exec.CommandContext(ctx, curl, "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", "--config", "-")
	cmd.Env, cmd.Stdin = environ, strings.NewReader(list.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %.200s", err, out)
	}
	return nil
}

func byGet(ctx context.Context, files []download) error {
	client := &http.Client{Transport: &http.Transport{}} // no proxy
	defer client.CloseIdleConnections()
	for _, f := range files {
		if err := get(ctx, client, f); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, f download) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.from, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: HTTP %s", f.from, res.Status)
	}
	out, err := os.Create(f.to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, res.Body)
	return errors.Join(err, out.Close())
}
