package hub

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Quota is how many requests one user, or one address without a token, may send in a window.
// Zero values are so many that nobody meets them.
type Quota struct {
	API, Pages, Resolvers int
	Window                time.Duration // 0: 5 minutes
}

func (q Quota) withDefaults() Quota {
	for _, n := range []*int{&q.API, &q.Pages, &q.Resolvers} {
		if *n == 0 {
			*n = 1_000_000
		}
	}
	if q.Window == 0 {
		q.Window = 5 * time.Minute
	}
	return q
}

// quotas counts requests in fixed windows, as the Hub does.
type quotas struct {
	limits Quota

	mu    sync.Mutex
	began time.Time      // the window that used belongs to
	used  map[string]int // by class and client
}

// class returns which quota a request counts for.
func (q Quota) class(path string) (name string, limit int) {
	switch {
	case strings.Contains(path, "/resolve/") || strings.HasPrefix(path, "/api/resolve-cache/"):
		return "resolvers", q.Resolvers
	case strings.HasPrefix(path, "/api/"):
		return "api", q.API
	}
	return "pages", q.Pages
}

// count takes a request from the client's quota, sets the headers that every answer carries, and
// reports whether there was anything left to take.
func (q *quotas) count(w http.ResponseWriter, path, client string, now time.Time) bool {
	name, limit := q.limits.class(path)
	window := now.Truncate(q.limits.Window)
	q.mu.Lock()
	if q.used == nil || !window.Equal(q.began) {
		q.began, q.used = window, map[string]int{}
	}
	key := name + " " + client
	q.used[key]++
	left := limit - q.used[key]
	q.mu.Unlock()

	end := window.Add(q.limits.Window).Sub(now)
	setRateLimit(w, name, max(left, 0), end)
	w.Header().Set("RateLimit-Policy", fmt.Sprintf(`"fixed window";"%s";q=%d;w=%d`, name, limit, int(q.limits.Window.Seconds())))
	return left >= 0
}

// setRateLimit says how many requests are left and in how long there are more.
func setRateLimit(w http.ResponseWriter, class string, left int, wait time.Duration) {
	seconds := (wait + time.Second - 1) / time.Second
	w.Header().Set("RateLimit", fmt.Sprintf(`"%s";r=%d;t=%d`, class, left, seconds))
}

// exhausted overrides what count said of the quota: nothing is left.
func (q *quotas) exhausted(w http.ResponseWriter, path string, now time.Time) {
	name, _ := q.limits.class(path)
	setRateLimit(w, name, 0, now.Truncate(q.limits.Window).Add(q.limits.Window).Sub(now))
}
