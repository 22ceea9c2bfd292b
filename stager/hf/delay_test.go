package hf

import (
	"net/http"
	"testing"
	"time"
)

func TestDelay(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		status  int
		headers []string
		attempt int
		want    time.Duration
	}{
		{0, nil, 0, time.Second}, {0, nil, 1, 2 * time.Second}, {0, nil, 3, 8 * time.Second}, {0, nil, 9, 8 * time.Second},
		{429, nil, 1, 2 * time.Second},
		{429, []string{"RateLimit", `"resolvers";r=0;t=55`}, 0, 56 * time.Second},
		{429, []string{"RateLimit", `"resolvers"; t=55; r=0`}, 0, 56 * time.Second},
		{429, []string{"RateLimit", `"api";r=12;t=55`}, 0, time.Second},
		{429, []string{"RateLimit", `"api";r=0;t=x`}, 0, time.Second},
		{429, []string{"RateLimit", `"api";r=0;t=55`, "Retry-After", "7"}, 0, 56 * time.Second},
		{429, []string{"Retry-After", "7"}, 0, 8 * time.Second},
		{503, []string{"Retry-After", "7"}, 0, 8 * time.Second},
		{503, []string{"Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"}, 0, time.Second},
		{503, []string{"RateLimit", `"api";r=0;t=55`}, 0, time.Second},
		{429, []string{"Retry-After", "999999"}, 0, 10 * time.Minute},
	} {
		var r *http.Response
		if test.status != 0 {
			r = &http.Response{StatusCode: test.status, Header: http.Header{}}
			for i := 0; i < len(test.headers); i += 2 {
				r.Header.Set(test.headers[i], test.headers[i+1])
			}
		}
		if got := s.delay(test.attempt, r); got != test.want {
			t.Errorf("%d %q, attempt %d: %v, want %v", test.status, test.headers, test.attempt, got, test.want)
		}
	}
}
