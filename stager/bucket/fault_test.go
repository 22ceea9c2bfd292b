package bucket_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"

	"github.com/headstart-serving/headstart/stager/bucket"
)

func TestFaultsOfReads(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(600 << 10)
	h.upload(t, "a", data)
	for _, c := range []struct {
		instruction string
		status      int
		sent        int // bytes of the body that arrive
		wrong       bool
		cut         bool
	}{
		{"return-503", 503, -1, false, false},
		{"return-429", 429, -1, false, false},
		{"return-403", 403, -1, false, false},
		{"return-503-after-256K", 200, 256 << 10, false, true},
		{"return-broken-stream", 200, 4, false, true},
		{"return-broken-stream-after-100K", 200, 100 << 10, false, true},
		{"return-broken-stream-after-600K", 200, 600 << 10, false, false}, // there is no more
		{"return-corrupted-data", 200, 600 << 10, true, false},
		{"stall-for-0s-after-128K", 200, 600 << 10, false, false},
	} {
		for _, path := range both("a") {
			h.ResetRequests()
			a := h.ask(t, "GET", path, nil, "x-goog-emulator-instructions: "+c.instruction)
			if a.status != c.status || c.sent >= 0 && len(a.body) != c.sent || (a.err != nil) != c.cut {
				t.Errorf("%s %s: %d, %d bytes, %v", c.instruction, path, a.status, len(a.body), a.err)
			}
			if c.sent > 0 && bytes.Equal(a.body, data[:c.sent]) == c.wrong {
				t.Errorf("%s %s: right bytes: %v", c.instruction, path, c.wrong)
			}
			if q := h.Requests(); len(q) != 1 || q[0].Status != c.status || q[0].Op != "storage.objects.get" || q[0].Object != "a" {
				t.Errorf("%s: logged %+v", c.instruction, q)
			}
		}
	}
	// A client that goes on behind the break gets through, as with the testbench.
	h.ask(t, "GET", "/models/a", nil, "Range: bytes=262144-", "x-goog-emulator-instructions: return-503-after-256K").want(t, 206)
	if _, err := h.try("GET", "/models/a", nil, "x-goog-emulator-instructions: return-reset-connection"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %v", err)
	}
	h.ask(t, "GET", "/models/a", nil, "x-goog-emulator-instructions: return-nothing").want(t, 400)
}

func TestStalls(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(600 << 10)
	h.upload(t, "a", data)
	for instruction, sent := range map[string]int{"stall-always": 0, "stall-at-256KiB": 256 << 10} {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", h.URL+"/models/a", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-goog-emulator-instructions", instruction)
		resp, err := h.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, sent)); err != nil {
			t.Errorf("%s: %v", instruction, err)
		}
		more := make(chan error, 1)
		go func() {
			_, err := resp.Body.Read(make([]byte, 1))
			more <- err
		}()
		cancel() // nothing else ends it
		if err := <-more; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: went on: %v", instruction, err)
		}
		resp.Body.Close()
	}
}

func TestFaultsOfUploads(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(1 << 20)
	// The fault comes at an offset of the object; what is before it is kept.
	if err := h.Plan("storage.objects.insert", "", "return-503-after-640K"); err != nil {
		t.Fatal(err)
	}
	u := h.begin(t, "a") // takes the ""
	h.chunk(t, u, data, 0, 256<<10, "*").want(t, 308)
	h.chunk(t, u, data, 256<<10, 1<<20, "1048576").want(t, 503)
	if got := h.probe(t, u); got != "bytes=0-524287" {
		t.Errorf("kept %s", got)
	}
	h.chunk(t, u, data, 512<<10, 1<<20, "1048576").want(t, 200)

	h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=media&name=b", data, "x-goog-emulator-instructions: return-503-after-256K").want(t, 503)
	h.ask(t, "GET", "/models/b", nil).want(t, 404)
	a := h.ask(t, "POST", "/upload/storage/v1/b/models/o?uploadType=media&name=b", data, "x-goog-emulator-instructions: return-broken-stream-final-chunk-after-10B")
	if a.status != 200 || len(a.body) != 10 || a.err == nil {
		t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
	}
	h.ask(t, "GET", "/models/b", nil).want(t, 200)
}

func TestRetryTests(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	create := func(body string) (id string) {
		var made struct{ ID string }
		if err := json.Unmarshal(h.ask(t, "POST", "/retry_test", []byte(body)).want(t, 200).body, &made); err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	id := create(`{"instructions":{"storage.objects.get":["return-503","return-429"],"storage.objects.list":["return-500"]}}`)
	other := create(`{"instructions":{"storage.objects.get":["return-502"]},"transport":"HTTP"}`)
	with := "x-retry-test-id: " + id
	h.ask(t, "GET", "/models/a", nil).want(t, 200)
	h.ask(t, "GET", "/models/a", nil, "x-retry-test-id: "+other).want(t, 502)
	h.ask(t, "GET", "/models/a", nil, with).want(t, 503)
	h.ask(t, "GET", "/storage/v1/b/models/o/a", nil, with).want(t, 429)
	h.ask(t, "GET", "/models/a", nil, with).want(t, 200)
	completed := func() bool {
		var test struct{ Completed bool }
		if err := json.Unmarshal(h.ask(t, "GET", "/retry_test/"+id, nil).want(t, 200).body, &test); err != nil {
			t.Fatal(err)
		}
		return test.Completed
	}
	if completed() {
		t.Error("completed before the list failed")
	}
	h.ask(t, "GET", "/storage/v1/b/models/o", nil, with).want(t, 500)
	if !completed() {
		t.Error("not completed")
	}
	h.ask(t, "GET", "/retry_tests", nil).want(t, 200)
	h.ask(t, "DELETE", "/retry_test/"+id, nil).want(t, 200)
	h.ask(t, "GET", "/retry_test/"+id, nil).want(t, 404)
	h.ask(t, "GET", "/models/a", nil, with).want(t, 404)
	for _, bad := range []string{`{}`, `{"instructions":{}}`, `{"instructions":{"x":[]}}`, `{"instructions":{"storage.objects.get":["nonsense"]}}`, `[]`} {
		h.ask(t, "POST", "/retry_test", []byte(bad)).want(t, 400)
	}
}

// The real client lives through every fault that it can retry, and the bytes are right.
func TestClientSurvivesFaults(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(1 << 20)
	put(t, h.object("a"), data)
	c := h.client
	c.SetRetry(storage.WithBackoff(gax.Backoff{Initial: time.Millisecond, Max: time.Millisecond, Multiplier: 1}), storage.WithPolicy(storage.RetryAlways))
	for _, f := range []string{"return-503", "return-429", "return-reset-connection", "return-broken-stream", "return-broken-stream-after-256K", "return-503-after-256K"} {
		if err := h.Plan("storage.objects.get", f, "return-503"); err != nil {
			t.Fatal(err)
		}
		h.ResetRequests()
		if got := get(t, h.object("a"), 0, -1); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes", f, len(got))
		}
		if n := len(h.Requests()); n != 3 {
			t.Errorf("%s: %d requests, want 3", f, n)
		}
	}
	if err := h.Plan("storage.objects.get", "return-corrupted-data"); err != nil {
		t.Fatal(err)
	}
	r, err := h.object("a").NewReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err == nil || !strings.Contains(err.Error(), "bad CRC") {
		t.Errorf("corrupted bytes: %v", err)
	}
	if err := h.Plan("storage.objects.insert", "return-503", "return-503-after-256K", "return-reset-connection", ""); err != nil {
		t.Fatal(err)
	}
	w := h.object("b").NewWriter(t.Context())
	w.ChunkSize = 512 << 10
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, h.object("b"), 0, -1); !bytes.Equal(got, data) {
		t.Errorf("stored %d bytes", len(got))
	}
	if err := h.Plan("storage.objects.get", "nonsense"); err == nil {
		t.Error("planned nonsense")
	}
}

func TestRequestBudget(t *testing.T) {
	h := start(t, t.TempDir(), option.WithUserAgent("budget"))
	data := pattern(600 << 10)
	h.ResetRequests()
	w := h.object("dir/a").NewWriter(t.Context())
	w.ChunkSize = 256 << 10
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	get(t, h.object("dir/a"), 100, 10)
	var got []string
	for _, q := range h.Requests() {
		got = append(got, fmt.Sprint(q.Op, " ", q.Object, " ", q.Method, " ", q.Range, " ", q.Status))
	}
	want := []string{
		"storage.objects.insert dir/a POST  200",
		"storage.objects.insert dir/a POST bytes 0-262143/* 200",
		"storage.objects.insert dir/a POST bytes 262144-524287/* 200",
		"storage.objects.insert dir/a POST bytes 524288-614399/614400 200",
		"storage.objects.get dir/a GET bytes=100-109 206",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("requests:\n%s", strings.Join(got, "\n"))
	}
}

// A shaped network takes the time that it says, counted on a clock of its own.
func TestShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := make([]byte, 4<<20)
		echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Write(body)
		})
		h := bucket.Shape{Latency: 30 * time.Millisecond, Stream: 1 << 20, Total: 2 << 20}.Handler(echo)
		begin := time.Now()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if d := time.Since(begin); d < 3700*time.Millisecond || d > 4100*time.Millisecond {
			t.Errorf("4 MiB at 1 MiB/s took %v", d)
		}
		if w.Body.Len() != len(body) {
			t.Errorf("%d bytes", w.Body.Len())
		}
		begin = time.Now()
		done := make(chan struct{})
		for range 4 {
			go func() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				done <- struct{}{}
			}()
		}
		for range 4 {
			<-done
		}
		if d := time.Since(begin); d < 7500*time.Millisecond || d > 8100*time.Millisecond {
			t.Errorf("4 times 4 MiB at 2 MiB/s took %v", d)
		}
		begin = time.Now()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/", bytes.NewReader(body)))
		if d := time.Since(begin); d < 7500*time.Millisecond || d > 8100*time.Millisecond {
			t.Errorf("4 MiB up and down at 1 MiB/s took %v", d)
		}
	})
}
