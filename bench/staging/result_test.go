package staging

import (
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/score"
	"github.com/headstart-serving/headstart/manifest"
)

func TestJoined(t *testing.T) {
	sum := func(s string) uint32 { return crc32.Checksum([]byte(s), manifest.Castagnoli) }
	all := []stored{
		{"bare/a/10", 3, sum("abc")}, {"bare/a/0", 10, sum("0123456789")}, {"bare/ab", 1, sum("x")}, {"bare/a/13", 0, 0},
		{"bare/gap/0", 1, 0}, {"bare/gap/2", 1, 0}, {"bare/odd/0", 1, 0}, {"bare/odd/x", 1, 0},
	}
	for name, want := range map[string]string{"bare/a": "0123456789abc", "bare/ab": "x", "bare/none": ""} {
		size, crc, err := joined(all, name)
		if err != nil || size != int64(len(want)) || crc != sum(want) {
			t.Errorf("%s: %d bytes, %08x, %v", name, size, crc, err)
		}
	}
	for _, name := range []string{"bare/gap", "bare/odd"} {
		if _, _, err := joined(all, name); err == nil {
			t.Errorf("%s is whole", name)
		}
	}
}

func TestTable(t *testing.T) {
	r := Result{Model: "acme/small", Files: 2, Bytes: 5e9, Machine: "2 processors", Scenarios: []Scenario{
		{
			Name: "near", Title: "loopback", Rounds: 2,
			Ways: []Way{
				{Name: stageName, Checks: "yes", Runs: []Sample{{Rate: 400e6, CPU: 1, Servers: 0.5, Memory: 300 << 20}, {Rate: 600e6, CPU: 1.2, Servers: 0.5, Memory: 400 << 20}}},
				{Name: bareName, Checks: "no", Runs: []Sample{{Rate: 500e6, CPU: 1.01, Servers: 0.5, Memory: 1 << 20}, {Rate: 500e6, CPU: 1.01, Servers: 0.5, Memory: 1 << 20}}},
			},
		},
		{
			Name: "narrow", Title: "a link", Rounds: 1, Link: &link.Shape{Total: 250e6},
			Ways: []Way{{Name: stageName, Checks: "yes", Runs: []Sample{{Rate: 240e6, CPU: 1, Memory: 600 << 20, Disk: 5e9}}}},
		},
	}}
	for i, goals := range []func(*Scenario) []score.Goal{nearGoals, narrowGoals} {
		s := &r.Scenarios[i]
		for j := range s.Ways {
			s.Ways[j].sum()
		}
		s.Goals = goals(s)
	}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("it writes\n%s\nwant\n%s", &out, want)
	}
}
