package demo

import (
	"bufio"
	"errors"
	"io"
	"os"

	"github.com/headstart-serving/headstart/bench/place"
)

// folder is the temporary folder, with everything that is made or mounted below it.
type folder struct {
	*place.Dir

	tmpfs string   // where the node has memory for models, "" where it has none
	cache string   // the node's; in the folder, unless the user named another place
	media []string // the node's flags for it
	other string   // a folder of the demo's elsewhere, "" for none
}

// What is in the folder.
const (
	prefix     = "headstart-demo-"
	bucketDir  = "bucket"
	mediumDir  = "cache"
	sumsFile   = "sha256sums"
	socketFile = "node.sock"
	nodeLog    = "node.log"
)

type writer = io.Writer

// newFolder makes the folder below parent.
func newFolder(parent string) (*folder, error) {
	dir, err := place.New(parent, prefix)
	if err != nil {
		return nil, err
	}
	f := &folder{Dir: dir}
	for _, sub := range []string{bucketDir, mediumDir} {
		if err := os.Mkdir(f.Path(sub), 0o700); err != nil {
			return nil, errors.Join(err, f.remove())
		}
	}
	return f, nil
}

func (p *folder) write(name string, to func(writer) error) error {
	f, err := os.Create(p.Path(name))
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	return errors.Join(to(b), b.Flush(), f.Close())
}

func (p *folder) remove() error {
	err := p.Remove()
	if p.other != "" {
		err = errors.Join(err, place.RemoveTree(p.other))
	}
	return err
}
