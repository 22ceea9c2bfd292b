package bucket

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// maxRetryTests bounds how many plans are kept.
const maxRetryTests = 4096

// retryTest is a plan of faults for the requests that name it.
type retryTest struct {
	ID           string              `json:"id"`
	Instructions map[string][]string `json:"instructions"` // by operation; what is still to come
	Transport    string              `json:"transport"`
	Completed    bool                `json:"completed"`
}

// retryTest answers the testbench's Retry Test API: POST /retry_test, GET and DELETE
// /retry_test/ID, GET /retry_tests.
func (s *Server) retryTest(w http.ResponseWriter, r *http.Request, rt route) error {
	path := r.URL.EscapedPath()
	id := strings.Trim(strings.TrimPrefix(path, "/retry_test"), "/")
	switch {
	case r.Method == http.MethodPost && id == "":
		return s.faults.create(w, r)
	case r.Method == http.MethodGet && path == "/retry_tests":
		return s.faults.listTests(w)
	case r.Method == http.MethodGet:
		return s.faults.show(w, id)
	case r.Method == http.MethodDelete:
		s.faults.mu.Lock()
		defer s.faults.mu.Unlock()
		delete(s.faults.tests, id)
		return writeJSON(w, http.StatusOK, map[string]string{})
	}
	return errNoMethod()
}

func (p *faultPlan) create(w http.ResponseWriter, r *http.Request) error {
	body, err := decodeBody(r.Body)
	if err != nil {
		return err
	}
	t := &retryTest{ID: newID(), Transport: "HTTP"}
	if json.Unmarshal(body["instructions"], &t.Instructions) != nil || len(t.Instructions) == 0 {
		return errInvalid("A retry test needs instructions.")
	}
	if v := body.text("transport"); v != "" && v != "HTTP" {
		return errUnsupported("retry tests over " + clip(v))
	}
	for op, list := range t.Instructions {
		if !strings.HasPrefix(op, "storage.") {
			return errInvalid("Unknown method: %s", clip(op))
		}
		for _, text := range list {
			if _, err := parseFault(text); err != nil {
				return err
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tests) >= maxRetryTests {
		return errInvalid("Too many retry tests.")
	}
	if p.tests == nil {
		p.tests = map[string]*retryTest{}
	}
	p.tests[t.ID] = t
	return writeJSON(w, http.StatusOK, t.now())
}

// now returns t as it is to be shown. The caller holds the plan's mutex.
func (t *retryTest) now() retryTest {
	shown := *t
	shown.Instructions = maps.Clone(t.Instructions)
	shown.Completed = true
	for _, list := range shown.Instructions {
		shown.Completed = shown.Completed && len(list) == 0
	}
	return shown
}

func (p *faultPlan) show(w http.ResponseWriter, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tests[id]
	if t == nil {
		return &apiError{status: http.StatusNotFound, reason: "notFound", code: "NoSuchTest", message: "No such retry test: " + clip(id)}
	}
	return writeJSON(w, http.StatusOK, t.now())
}

func (p *faultPlan) listTests(w http.ResponseWriter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []retryTest{}
	for _, id := range slices.Sorted(maps.Keys(p.tests)) {
		list = append(list, p.tests[id].now())
	}
	return writeJSON(w, http.StatusOK, map[string]any{"retry_test": list})
}
