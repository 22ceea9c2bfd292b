package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/headstart-serving/headstart/loader"
	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
)

// The help of node has every metric with its labels, and none that there is not.
func TestNodeHelpNamesMetrics(t *testing.T) {
	c, err := cache.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	engine := fetch.New(fetch.Config{})
	descs := make(chan *prometheus.Desc, 1000)
	for _, m := range append(append(engine.Collectors(), loader.New(loader.Config{Cache: c, Engine: engine}).Collectors()...), buildInfo()) {
		m.Describe(descs)
	}
	close(descs)
	want := map[string]bool{}
	form := regexp.MustCompile(`fqName: "headstart_([a-z_]+)".*constLabels: \{(.*?)\}, variableLabels: \{(.*?)\}`)
	for d := range descs {
		m := form.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("what is this: %s", d)
		}
		name := m[1]
		switch {
		case m[2] != "":
			name += "{" + regexp.MustCompile(`="[^"]*"`).ReplaceAllString(m[2], "") + "}"
		case m[3] != "":
			name += "{" + m[3] + "}"
		}
		want[name] = true
	}
	_, help, _ := strings.Cut(newNodeCommand(process{Getenv: func(string) string { return "" }}).Long, "headstart_\n")
	help, _, _ = strings.Cut(help, "\n\n")
	for _, name := range strings.Fields(help) {
		if !want[name] {
			t.Errorf("the help has %s, which is no metric", name)
		}
		delete(want, name)
	}
	if len(want) > 0 || len(help) == 0 {
		t.Errorf("the help lacks %v", want)
	}
}

func TestProfiles(t *testing.T) {
	if s, err := listenProfiles(t.Context(), ""); s != nil || err != nil {
		t.Errorf("without an address: %v, %v", s, err)
	}
	if _, err := listenProfiles(t.Context(), "6060"); err == nil || exitCode(t.Context(), err) != exitUsage || !strings.Contains(err.Error(), "--pprof") {
		t.Errorf("without a port: %v", err)
	}
	servers, err := listenProfiles(t.Context(), ":0")
	if err != nil || len(servers) != 1 || !strings.HasPrefix(servers[0].URL(), "http://127.0.0.1:") {
		t.Fatalf("%v, %v", servers, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- serve(ctx, servers...) }()
	for path, status := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/cmdline": 200, "/metrics": 404, "/": 404} {
		res, err := http.Get(servers[0].URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != status || len(body) == 0 {
			t.Errorf("%s: %s, %v", path, res.Status, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
