package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/loader/cache"
	"github.com/headstart-serving/headstart/loader/fetch"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

// learning is a view that notes in which order chunks are first demanded.
type learning struct {
	*view
	recorder *order.Recorder
	first    []int // number of each file's first chunk
}

// watched returns the view of m's entry for a mount. All mounts of a model teach one recorder.
func (m *model) watched(e *cache.Entry) *learning {
	mf := e.Manifest()
	v := &learning{view: &view{m, e}, first: make([]int, len(mf.Files))}
	n := 0
	for i := range mf.Files {
		v.first[i] = n
		n += len(mf.Files[i].Chunks)
	}
	m.loader.mu.Lock()
	defer m.loader.mu.Unlock()
	if m.recorder == nil {
		m.recorder = order.NewRecorder(n)
	}
	v.recorder = m.recorder
	return v
}

// Wait implements [modelfs.Model].
func (v *learning) Wait(ctx context.Context, file int, off, n int64) error {
	if m := v.Manifest(); off >= 0 && n > 0 && off < m.Files[file].Size {
		last := (off + min(n, m.Files[file].Size-off) - 1) / m.ChunkSize
		for c := off / m.ChunkSize; c <= last; c++ {
			v.recorder.Demand(v.first[file] + int(c))
		}
	}
	return v.view.Wait(ctx, file, off, n)
}

// quiet is how long no chunk is demanded for the first time before an order is written down.
const quiet = 5 * time.Second

// writeOrders writes down what readers teach until ctx ends.
func (l *Loader) writeOrders(ctx context.Context) {
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	before := map[*order.Recorder]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.mu.Lock()
		models := make([]*model, 0, len(l.models))
		for _, m := range l.models {
			if m.recorder != nil {
				models = append(models, m)
			}
		}
		l.mu.Unlock()
		now := map[*order.Recorder]int{}
		for _, m := range models {
			n := len(m.recorder.Chunks())
			now[m.recorder] = n
			if n == before[m.recorder] {
				l.writeOrder(m)
			}
		}
		before = now
	}
}

// writeOrder keeps what readers of m taught, unless as much is kept already: a later reader whose model
// came sooner teaches less.
func (l *Loader) writeOrder(m *model) {
	l.mu.Lock()
	recorder := m.recorder
	l.mu.Unlock()
	if recorder == nil {
		return
	}
	l.orders.mu.Lock()
	defer l.orders.mu.Unlock()
	chunks := recorder.Chunks()
	if len(chunks) <= m.written {
		return
	}
	m.written = len(chunks)
	if kept, err := l.orders.read(m); err == nil && len(kept) > len(chunks) {
		return
	}
	data, err := order.Marshal(chunks, m.m, manifest.Sum(m.raw))
	if err == nil {
		err = l.orders.write(m.id, data)
	}
	if err != nil {
		l.cfg.Log.Warn("the order in which a model is read is not kept: the next load of it is in the usual order", "model", m.m.Model.String(), "err", err)
		return
	}
	l.cfg.Log.Info("learnt the order in which a model is read", "model", m.m.Model.String(), "chunks", len(chunks), "of", order.Chunks(m.m))
}

// teach has a load follow the order that was learnt, when it is found; the load does not wait for it. The
// caller holds l.mu.
func (l *Loader) teach(m *model, load *fetch.Load) {
	if l.isStopped() {
		return
	}
	l.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		found := make(chan []int, 1)
		go func() { found <- l.learnt(ctx, m) }()
		select {
		case chunks := <-found:
			if len(chunks) > 0 {
				load.Follow(chunks)
			}
			return
		case <-load.Done():
		case <-l.stopped:
		}
		cancel()
		<-found
	})
}

// learnt returns the order that the bucket has for m, else this node's own, else nil. It is a hint: what is
// wrong with it is said and does no harm.
func (l *Loader) learnt(ctx context.Context, m *model) []int {
	data, err := l.cfg.Source.Get(ctx, m.m.Model.OrderKey(), order.MaxSize)
	var chunks []int
	if err == nil {
		chunks, err = order.Parse(data, m.m, manifest.Sum(m.raw))
	}
	if err == nil {
		return chunks
	}
	if !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		l.cfg.Log.Warn("the bucket's order of a model is not used", "model", m.m.Model.String(), "key", m.m.Model.OrderKey(), "err", err)
	}
	if chunks, err = l.orders.read(m); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.cfg.Log.Warn("the learnt order of a model is not used", "model", m.m.Model.String(), "err", err)
	}
	return chunks
}

// Order returns the order in which readers on this node demanded a model's chunks while it was loading, as
// package order has it. The error wraps fs.ErrNotExist where nobody did.
func (l *Loader) Order(ctx context.Context, ref manifest.Reference) ([]byte, error) {
	mf, raw, err := l.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	m := l.hold(mf, raw)
	defer l.release(m)
	l.writeOrder(m)
	chunks, err := l.orders.read(m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fetch.Fail(fs.ErrNotExist, "no order of %s was learnt here: nobody has read it on this node while it was loading", mf.Model)
	}
	if err != nil {
		return nil, err
	}
	return order.Marshal(chunks, mf, manifest.Sum(raw))
}

// orders is the folder of what was learnt, a file for each entry. It outlives the entries.
type orders struct {
	dir string
	mu  sync.Mutex // held while one is written
}

// maxOrders bounds how many are kept.
const maxOrders = 200

func (o *orders) read(m *model) ([]int, error) {
	f, err := os.Open(filepath.Join(o.dir, m.id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, order.MaxSize+1))
	if err != nil {
		return nil, err
	}
	chunks, err := order.Parse(data, m.m, manifest.Sum(m.raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return chunks, nil
}

// spare is how many bytes of the cache's file system an order leaves to what matters more: leases.
const spare = 1 << 20

// write puts the whole file in its place or none: also where there is hardly any room. A crash of the
// machine may leave a torn one, which is then none that read takes.
func (o *orders) write(id string, data []byte) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(o.dir, &st); err != nil {
		return fmt.Errorf("looking at the file system of %s: %w", o.dir, err)
	}
	if st.Bavail*uint64(st.Bsize) < spare+uint64(len(data)) {
		return nil
	}
	path := filepath.Join(o.dir, id)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return o.prune()
}

// prune drops the oldest of too many.
func (o *orders) prune() error {
	files, err := os.ReadDir(o.dir)
	if err != nil || len(files) <= maxOrders {
		return err
	}
	age := make(map[string]time.Time, len(files))
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			age[f.Name()] = info.ModTime()
		}
	}
	slices.SortFunc(files, func(a, b fs.DirEntry) int {
		if c := age[a.Name()].Compare(age[b.Name()]); c != 0 {
			return c
		}
		return strings.Compare(a.Name(), b.Name())
	})
	for _, f := range files[:len(files)-maxOrders] {
		if err := os.Remove(filepath.Join(o.dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}
