package order_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/headstart-serving/headstart/loader/fetch/fetchtest"
	"github.com/headstart-serving/headstart/loader/order"
	"github.com/headstart-serving/headstart/manifest"
)

func model(t testing.TB) (*manifest.Manifest, manifest.Digest) {
	m := fetchtest.NewModel(t, "org/name", map[string]int{"config.json": 3, "empty": 0, "a.safetensors": 5 * fetchtest.ChunkSize, "b.safetensors": 4*fetchtest.ChunkSize + 1})
	return m.Manifest, manifest.Sum(m.Raw)
}

func TestMarshal(t *testing.T) {
	m, sum := model(t)
	if n := order.Chunks(m); n != 11 {
		t.Fatalf("%d chunks", n)
	}
	reverse := []int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}
	for _, chunks := range [][]int{nil, {0}, {10}, {3, 4, 5, 0, 1, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, reverse} {
		data, err := order.Marshal(chunks, m, sum)
		if err != nil {
			t.Fatal(err)
		}
		got, err := order.Parse(data, m, sum)
		if err != nil || !slices.Equal(got, chunks) {
			t.Errorf("%v came back as %v, %v: %s", chunks, got, err, data)
		}
	}
	want := `{"version":1,"manifest":"` + sum.String() + `","runs":[[3,3],[0,2],[9,1]]}` + "\n"
	if data, _ := order.Marshal([]int{3, 4, 5, 0, 1, 9}, m, sum); string(data) != want {
		t.Errorf("got %s, want %s", data, want)
	}
	for _, bad := range [][]int{{-1}, {11}, {3, 3}, {1, 2, 1}} {
		if data, err := order.Marshal(bad, m, sum); err == nil {
			t.Errorf("%v became %s", bad, data)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	m, sum := model(t)
	head := `{"version":1,"manifest":"` + sum.String() + `","runs":`
	for _, c := range []struct{ data, text string }{
		{"", "JSON"},
		{"[]", "cannot unmarshal"},
		{"{}", "version 0"},
		{`{"version":2,"manifest":"` + sum.String() + `","runs":[]}` + "\n", "version 2"},
		{`{"version":1,"manifest":"` + strings.Repeat("0", 64) + `","runs":[]}` + "\n", "another manifest"},
		{head + "[[0,12]]}\n", "the model has 11"},
		{head + "[[11,1]]}\n", "the model has 11"},
		{head + "[[-1,1]]}\n", "the model has 11"},
		{head + "[[5,0]]}\n", "the model has 11"},
		{head + "[[5,-3]]}\n", "the model has 11"},
		{head + "[[1,9223372036854775807]]}\n", "the model has 11"},
		{head + "[[1,1e3]]}\n", "cannot unmarshal"},
		{head + "[[0,5],[3,1]]}\n", "chunk 3 comes twice"},
		{head + "[[0,1],[1,1]]}\n", "not the encoding"}, // one run
		{head + "[[3]]}\n", "the model has 11"},
		{head + "[[3,1,7]]}\n", "not the encoding"},
		{head + "[[3,1]] }\n", "not the encoding"},
		{head + "[[3,1]]}", "not the encoding"},
		{head + "null}\n", "not the encoding"},
		{head + `[[3,1]],"x":1}` + "\n", "not the encoding"},
		{head + "[" + strings.Repeat(" ", order.MaxSize) + "]}\n", "bytes, more than"},
	} {
		chunks, err := order.Parse([]byte(c.data), m, sum)
		if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.120s: %v, %v; want %q", c.data, chunks, err, c.text)
		}
	}
}

// What is taken is an order of different chunks of the model, in the one encoding.
func FuzzParse(f *testing.F) {
	m, sum := model(f)
	for range 20 {
		data, err := order.Marshal(rand.Perm(11)[:rand.IntN(12)], m, sum)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		chunks, err := order.Parse(data, m, sum)
		if err != nil {
			return
		}
		seen := map[int]bool{}
		for _, c := range chunks {
			if c < 0 || c >= 11 || seen[c] {
				t.Fatalf("%v from %s", chunks, data)
			}
			seen[c] = true
		}
		if again, err := order.Marshal(chunks, m, sum); err != nil || string(again) != string(data) {
			t.Errorf("%s became %s, %v", data, again, err)
		}
	})
}

func TestRecorder(t *testing.T) {
	r := order.NewRecorder(100)
	for _, c := range []int{5, 5, 3, 99, 3} {
		r.Demand(c)
	}
	if got := r.Chunks(); !slices.Equal(got, []int{5, 3, 99}) {
		t.Errorf("%v", got)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for _, c := range rand.Perm(100) {
				r.Demand(c)
			}
		})
	}
	group.Wait()
	got := r.Chunks()
	if !slices.Equal(got[:3], []int{5, 3, 99}) {
		t.Errorf("what was first is %v", got[:3])
	}
	slices.Sort(got)
	for i, c := range got {
		if i != c || len(got) != 100 {
			t.Fatalf("not each chunk once: %v", got)
		}
	}
}
