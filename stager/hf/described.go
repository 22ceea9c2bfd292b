package hf

import (
	"sync"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
)

// described keeps what the description of a commit says that there is: a second listing, which costs no
// request. A page of the first one that comes back empty, or without the link to the next, would otherwise
// become a model that lacks files.
type described struct {
	mu    sync.Mutex
	names map[manifest.Model][]sibling
}

type sibling struct {
	Name string `json:"rfilename"`
}

func (d *described) keep(m manifest.Model, names []sibling) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names == nil {
		d.names = make(map[manifest.Model][]sibling)
	}
	d.names[m] = names
}

// check reports a file that was described and is not listed.
func (d *described) check(m manifest.Model, files []stager.RemoteFile) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	listed := make(map[string]bool, len(files))
	for _, f := range files {
		listed[f.Path] = true
	}
	for _, s := range d.names[m] {
		if !listed[s.Name] {
			return stager.Fail(manifest.ErrInvalid, "the listing of %s lacks %.100q, which the repository's description names: stage again, or check proxies", m.Repo, s.Name)
		}
	}
	return nil
}
