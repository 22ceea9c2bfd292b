package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/manifest"
)

// Client asks the node at a socket. It is a [Node] but for Status, which can fail.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client of the node at path. It connects when it is asked something.
func Dial(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Publish is PublishAs in the layout [loader.Plain].
func (c *Client) Publish(ctx context.Context, ref manifest.Reference, target string) (loader.Published, error) {
	return c.PublishAs(ctx, ref, target, loader.Plain)
}

// PublishAs shows a model at target, see [loader.Loader.PublishAs].
func (c *Client) PublishAs(ctx context.Context, ref manifest.Reference, target string, layout loader.Layout) (loader.Published, error) {
	var p loader.Published
	err := c.ask(ctx, http.MethodPost, "/v1/publish", publishRequest{ref.String(), target, string(layout)}, &p)
	return p, err
}

// Unpublish takes away what is shown at target, see [loader.Loader.Unpublish].
func (c *Client) Unpublish(ctx context.Context, target string) error {
	return c.ask(ctx, http.MethodPost, "/v1/unpublish", unpublishRequest{target}, &struct{}{})
}

// Order returns what the node has learnt of a model, see [loader.Loader.Order].
func (c *Client) Order(ctx context.Context, ref manifest.Reference) ([]byte, error) {
	var data json.RawMessage
	if err := c.ask(ctx, http.MethodGet, "/v1/order?model="+url.QueryEscape(ref.String()), nil, &data); err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// Status returns what the node has and does.
func (c *Client) Status(ctx context.Context) (loader.Status, error) {
	var s loader.Status
	err := c.ask(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// returning is how long Wait waits for a node that went without a word: its worker may be replaced.
const returning = 10 * time.Second

// errCutOff says that an answer ended in the middle.
var errCutOff = errors.New("the node has stopped")

// Wait returns when the node has all of a model, see [loader.Loader.Wait]. It goes on when the node's
// worker is replaced meanwhile.
func (c *Client) Wait(ctx context.Context, ref manifest.Reference, progress func(loader.Progress)) error {
	for restarts := 0; ; restarts++ {
		err := c.lines(ctx, "/v1/wait", ref, func(l line) {
			if l.Progress != nil && progress != nil {
				progress(*l.Progress)
			}
		})
		if !errors.Is(err, errCutOff) || restarts == 10 || !c.returns(ctx) {
			return err
		}
	}
}

// returns reports whether a node answers again.
func (c *Client) returns(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, returning)
	defer cancel()
	for {
		_, err := c.Status(ctx)
		unanswered := (*url.Error)(nil) // as opposed to an answer that is not a node's
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.As(err, &unanswered) {
			return err == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Verify reads a model on the node back and mends it, see [loader.Loader.Verify].
func (c *Client) Verify(ctx context.Context, ref manifest.Reference, progress func(loader.Check)) error {
	wrong := []string{}
	return c.lines(ctx, "/v1/verify", ref, func(l line) {
		if l.Checked != nil && progress != nil {
			wrong = append(wrong, l.Checked.Wrong...)
			l.Checked.Wrong = wrong
			progress(*l.Checked)
		}
	})
}

// lines asks for something about a model and hands out the lines of the answer until the last one.
func (c *Client) lines(ctx context.Context, path string, ref manifest.Reference, each func(line)) error {
	res, err := c.send(ctx, http.MethodPost, path, modelRequest{ref.String()})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return c.garbled(err)
		}
		switch {
		case l.Error != nil:
			return l.Error.decode()
		case l.Done:
			return nil
		}
		each(l)
	}
	if err := errors.Join(ctx.Err(), lines.Err()); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("waiting for the node at %s: %w", c.path, err)
	}
	return fmt.Errorf("waiting for the node at %s: %w", c.path, errCutOff)
}

// ask sends in and reads the answer into out.
func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return c.garbled(err)
	}
	return nil
}

// send returns an answer that is not an error; its body is the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var answer errorAnswer
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&answer); err != nil || answer.Error == nil {
		return nil, c.garbled(fmt.Errorf("HTTP %s", res.Status))
	}
	return nil, answer.Error.decode()
}

// unreachable says what to do where nobody answers.
func (c *Client) unreachable(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &nodeError{fmt.Sprintf("no node answers at %s: start one with headstart node --socket %[1]s, or name its socket with --socket", c.path), syscall.ECONNREFUSED}
	}
	return fmt.Errorf("asking the node at %s: %w", c.path, err)
}

func (c *Client) garbled(err error) error {
	return fmt.Errorf("the answer of the node at %s is not understood: %w", c.path, err)
}
