package bucket

import (
	"net/http"
	"sync"
)

type faultPlan struct{ mu sync.Mutex }

func (p *faultPlan) apply(w http.ResponseWriter, r *http.Request, rt route, next func(http.ResponseWriter, *http.Request) error) error {
	return next(w, r)
}

func (s *Server) retryTest(w http.ResponseWriter, r *http.Request, rt route) error {
	return errNoMethod()
}
func (s *Server) batch(w http.ResponseWriter, r *http.Request, rt route) error { return errNoMethod() }
