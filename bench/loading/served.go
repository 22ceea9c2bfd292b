package loading

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/score"
)

// Servers is how a real vLLM starts. Times are in seconds from the moment the load begins.
type Servers struct {
	Plain ServerStart   `json:"plain"` // with nothing to load: the ideal on every network
	Over  []ServersOver `json:"over"`  // by how long the transfer takes
}

// ServersOver is how it starts over one network.
type ServersOver struct {
	Transfer float64       `json:"transfer_s"` // that the model's bytes alone take
	Link     link.Shape    `json:"link"`
	Starts   []ServerStart `json:"starts"`
	Goals    []score.Goal  `json:"goals"`
}

// ServerStart is what one way took.
type ServerStart struct {
	Name  string       `json:"name"`
	Runs  []ServerRun  `json:"runs"`
	First score.Spread `json:"first_token_s"`
	Over  score.Spread `json:"over_plain"` // as a share of the plain copy's median
	Late  score.Spread `json:"weights_s"`  // from the moment when the weights were wanted until they were there
}

// ServerRun is what one start took.
type ServerRun struct {
	First  float64 `json:"first_token_s"`
	Before float64 `json:"before_server_s"`  // until the server's process was started
	Wanted float64 `json:"weights_wanted_s"` // when it wanted the first weight
	Loaded float64 `json:"weights_loaded_s"` // when it had the last one
	Tokens []int   `json:"token_ids"`        // of a completion and a chat: the same in every run
}

// all returns all starts.
func (s *Servers) all() []*ServerStart {
	list := []*ServerStart{&s.Plain}
	for i := range s.Over {
		for j := range s.Over[i].Starts {
			list = append(list, &s.Over[i].Starts[j])
		}
	}
	return list
}

// over returns the network over which a transfer takes so many seconds. It has to be the one that there was.
func (s *Servers) over(seconds float64, shape link.Shape) (*ServersOver, error) {
	i, found := slices.BinarySearchFunc(s.Over, seconds, func(o ServersOver, t float64) int { return cmp.Compare(o.Transfer, t) })
	if !found {
		s.Over = slices.Insert(s.Over, i, ServersOver{Transfer: seconds, Link: shape})
	}
	if s.Over[i].Link != shape {
		return nil, fmt.Errorf("a transfer of %g s was measured over %+v, which is not %+v: name another file to keep the starts in", seconds, s.Over[i].Link, shape)
	}
	return &s.Over[i], nil
}

// start returns the start of that name.
func (o *ServersOver) start(name string) *ServerStart {
	i := slices.IndexFunc(o.Starts, func(s ServerStart) bool { return s.Name == name })
	if i < 0 {
		i = len(o.Starts)
		o.Starts = append(o.Starts, ServerStart{Name: name})
	}
	return &o.Starts[i]
}

// sum fills spreads and goals from the runs.
func (s *Servers) sum() {
	for _, x := range s.all() {
		x.First = x.of(func(r ServerRun) float64 { return r.First })
		x.Late = x.of(func(r ServerRun) float64 { return r.Loaded - r.Wanted })
		if plain := s.Plain.First.Median; plain > 0 {
			x.Over = x.of(func(r ServerRun) float64 { return r.First/plain - 1 })
		}
	}
	for i := range s.Over {
		s.Over[i].Goals = serverGoals(&s.Plain, &s.Over[i])
	}
}

func (s *ServerStart) of(number func(ServerRun) float64) score.Spread {
	var all []float64
	for _, r := range s.Runs {
		all = append(all, number(r))
	}
	return score.Of(all)
}

// wanted is when the first weight is wanted: the head start of a transfer.
func (s *ServerStart) wanted() float64 {
	return s.of(func(r ServerRun) float64 { return r.Wanted }).Median
}

const goalOverPlain = 3 // per cent, while the transfer fits into the head start

// serverGoals are those of one network: as good as a plain copy where a server imports for longer than the
// transfer takes, else ahead of everybody.
func serverGoals(plain *ServerStart, o *ServersOver) []score.Goal {
	i := slices.IndexFunc(o.Starts, func(s ServerStart) bool { return s.Name == startName })
	if i < 0 || len(o.Starts[i].Runs) == 0 || len(plain.Runs) == 0 {
		return nil
	}
	node := o.Starts[i]
	if o.Transfer <= plain.wanted() {
		return []score.Goal{score.AtMost("node: first token, per cent over the plain copy's", goalOverPlain, 100*node.Over.Median)}
	}
	fastest := 0.0
	for _, s := range o.Starts {
		if !strings.HasPrefix(s.Name, startName) && len(s.Runs) > 0 && (fastest == 0 || s.First.Median < fastest) {
			fastest = s.First.Median
		}
	}
	if fastest == 0 {
		return nil
	}
	return []score.Goal{score.AtMost("node: first token, of the fastest other's", 1, node.First.Median/fastest)}
}
