package loading

import (
	"context"
	_ "embed" // streamer.py
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// way is how a model gets from the bucket to where it can be read.
type way struct {
	name   string
	checks string                                // that it makes, in a few words
	ready  func(context.Context, *attempt) error // before the clock: what runs on a machine anyway; may be nil
	load   func(context.Context, *attempt) error // by the clock
	done   func(context.Context) error           // after everything went well; may be nil
}

// The names of those that goals are about.
const (
	limitName    = "limit: bare receive-check-write loop"
	nodeName     = "headstart node: publish and wait"
	fetchName    = "headstart fetch"
	grpcName     = "headstart fetch --transport grpc"
	streamName   = "headstart node: read while it streams"
	curlName     = "curl"
	rcloneName   = "rclone copy"
	rcloneNoName = "rclone copy, no checksums, 8 parts at once"
	managerName  = "transfermanager, 8 parts at once"
	runaiName    = "Run:ai model streamer, to memory"
	gcsfuseName  = "gcsfuse" // and how
)

// What the ways check.
const (
	every     = "yes: crc32c of each chunk, before it is seen"
	sizeOnly  = "size"
	unchecked = "no"
)

// ours are headstart's ways, and the limit.
func (b *bench) ours() []way {
	return []way{b.limitWay(8), nodeWay(), fetchWay(fetchName), fetchWay(grpcName, "--transport", "grpc"), streamWay()}
}

func (b *bench) limitWay(streams int) way {
	return way{name: limitName, checks: "crc32c of each chunk", load: func(ctx context.Context, a *attempt) error {
		return a.tool(ctx, nil, a.Self, "bench", "limit", a.model().String(), a.dir, "--streams", fmt.Sprint(streams))
	}}
}

func fetchWay(name string, flags ...string) way {
	return way{name: name, checks: every, load: func(ctx context.Context, a *attempt) error {
		return a.tool(ctx, nil, append([]string{a.Self, "fetch", a.model().String(), a.dir, "--json"}, flags...)...)
	}}
}

// peers are the others', as far as their programs are here.
func (b *bench) peers() []way {
	var list []way
	for _, x := range []struct {
		name, program string
		ways          func() []way
	}{
		{"curl", b.Peers.Curl, func() []way { return []way{curlWay()} }},
		{"rclone", b.Peers.Rclone, func() []way { return []way{rcloneWay(), rcloneNoWay()} }},
		{"transfermanager", b.Peers.Manager, func() []way { return []way{managerWay()} }},
		{"gcsfuse", b.Peers.GCSFuse, func() []way { return gcsfuseWays(b.Part) }},
		{"Run:ai's model streamer", b.Peers.Python, func() []way { return []way{runaiWay()} }},
	} {
		if x.program == "" {
			b.leaveOut(x.name)
			continue
		}
		list = append(list, x.ways()...)
	}
	return list
}

func (b *bench) leaveOut(peer string) {
	b.say("%s is not measured, for it is not here: make bench-load brings it", peer)
	b.result.LeftOut = append(b.result.LeftOut, peer)
}

// curlWay is one curl for all files, one after the other over one connection.
func curlWay() way {
	return way{name: curlName, checks: unchecked, load: func(ctx context.Context, a *attempt) error {
		var text strings.Builder
		for _, p := range a.paths {
			from := a.url + "/" + bucketName + "/" + (&url.URL{Path: a.model().Object(p)}).EscapedPath()
			fmt.Fprintf(&text, "url = %q\noutput = %q\n", from, filepath.Join(a.dir, filepath.FromSlash(p)))
		}
		list := filepath.Join(a.home, "curl")
		if err := os.WriteFile(list, []byte(text.String()), 0o600); err != nil {
			return err
		}
		return a.tool(ctx, nil, a.Peers.Curl, "--disable", "--silent", "--show-error", "--fail", "--create-dirs", "--noproxy", "*", "--config", list)
	}}
}

func rclone(ctx context.Context, a *attempt, from string, more ...string) error {
	args := []string{
		a.Peers.Rclone, "copy", ":gcs:" + bucketName + "/" + from, a.dir, "--config=", "--gcs-anonymous",
		"--gcs-endpoint", a.url + "/storage/v1/", "--gcs-bucket-policy-only", "--retries", "1",
	}
	return a.tool(ctx, nil, append(args, more...)...)
}

// rcloneWay is rclone as it comes. It compares MD5, which only objects have that were uploaded in one piece.
func rcloneWay() way {
	return way{name: rcloneName, checks: "md5 of each file", load: func(ctx context.Context, a *attempt) error {
		return rclone(ctx, a, plain)
	}}
}

// rcloneNoWay is rclone at its fastest.
func rcloneNoWay() way {
	return way{name: rcloneNoName, checks: sizeOnly, load: func(ctx context.Context, a *attempt) error {
		return rclone(ctx, a, strings.TrimSuffix(a.model().Object(""), "/"), "--ignore-checksum", "--no-check-dest", "--transfers", "8",
			"--multi-thread-streams", "8", "--multi-thread-cutoff", fmt.Sprint(a.Part, "B"), "--multi-thread-chunk-size", fmt.Sprint(a.Part, "B"))
	}}
}

func managerWay() way {
	return way{name: managerName, checks: "crc32c of each file", load: func(ctx context.Context, a *attempt) error {
		args := []string{a.Peers.Manager, strconv.FormatInt(a.Part, 10), bucketName, strings.TrimSuffix(a.model().Object(""), "/"), a.dir}
		return a.tool(ctx, nil, append(args, a.paths...)...)
	}}
}

//go:embed streamer.py
var streamer string

// runaiWay brings the weights alone, into the memory of one process. What Python and torch take to start is
// not counted: in a server they are there already.
func runaiWay() way {
	return way{name: runaiName, checks: unchecked, load: func(ctx context.Context, a *attempt) error {
		args := []string{a.Peers.Python, "-c", streamer, a.url}
		for _, p := range a.paths {
			if weights(p) {
				args = append(args, "gs://"+bucketName+"/"+a.model().Object(p))
			}
		}
		a.own = &streamed{}
		return a.tool(ctx, a.own, args...)
	}}
}
