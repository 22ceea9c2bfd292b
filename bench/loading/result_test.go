package loading

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/bench/link"
)

func sample(rate, cpu, reader float64) []Sample {
	return []Sample{{Rate: rate, CPU: cpu, Reader: reader, Memory: 50 << 20, Verified: true}, {Rate: 2 * rate, CPU: cpu, Reader: reader, Memory: 70 << 20, Verified: true}}
}

// result is one with every kind of line.
func result() *Result {
	r := &Result{Model: "acme/small", Files: 3, Bytes: 5e9, Machine: "2 processors <fast>", Medium: "tmpfs", Part: 1 << 20, Load: "1 2 3", LoadEnd: "4 5 6", LeftOut: []string{"rclone"}}
	cold := Loads{Name: Cold, Title: "loopback", Rounds: 2, Ways: []Way{
		{Name: limitName, Checks: "crc32c", Runs: sample(1e9, 0.3, 0)},
		{Name: nodeName, Checks: "yes", Runs: sample(0.9e9, 0.4, 0)},
		{Name: streamName, Checks: "yes", Runs: sample(0.5e9, 0.5, 0.2)},
		{Name: plainName, Checks: "no", Runs: sample(0.2e9, 1, 0.5)},
		{Name: bufferedName, Checks: "no", Runs: sample(0.3e9, 1, 0.5)},
	}}
	far := Loads{
		Name: "5 Gbit/s", Title: "scaled", Rounds: 1, Link: &link.Shape{Total: 50e6},
		Ways:   []Way{{Name: nodeName, Checks: "yes", Runs: []Sample{{Rate: 49e6}}}},
		Starts: []Start{{Name: startName + ", tensor parallel 1", HeadStart: 3, Ideal: 100, Runs: []float64{104}}, {Name: bufferedName, HeadStart: 3, Ideal: 100, Runs: []float64{150}}},
	}
	for _, l := range []*Loads{&cold, &far} {
		for i := range l.Ways {
			l.Ways[i].sum()
		}
		for i := range l.Starts {
			l.Starts[i].sum()
		}
	}
	r.Servers = &Servers{
		Plain: ServerStart{Name: plainServer, Runs: []ServerRun{{First: 100, Wanted: 50, Loaded: 52}, {First: 102, Wanted: 52, Loaded: 54}}},
		Over: []ServersOver{
			{Transfer: 20, Link: link.Shape{Total: 250e6, Stream: 30e6, RoundTrip: 10e6}, Starts: []ServerStart{
				{Name: startName, Runs: []ServerRun{{First: 102, Wanted: 51, Loaded: 53}, {First: 105, Wanted: 51, Loaded: 54}}},
				{Name: runaiServer, Runs: []ServerRun{{First: 122, Wanted: 51, Loaded: 73}}},
			}},
			{Transfer: 60, Link: link.Shape{Total: 80e6, Stream: 10e6}, Starts: []ServerStart{
				{Name: startName, Runs: []ServerRun{{First: 112, Wanted: 51, Loaded: 63}}},
				{Name: nodeRunaiServer, Runs: []ServerRun{{First: 111, Wanted: 51, Loaded: 63}}},
				{Name: bufferedName},
				{Name: runaiServer, Runs: []ServerRun{{First: 160, Wanted: 51, Loaded: 111}}},
			}},
		},
	}
	r.Servers.sum()
	cold.Goals, far.Goals = coldGoals(&cold), linkGoals(&far)
	r.Loads = []Loads{cold, far}
	r.Second = &Second{Rounds: 5}
	r.Second.Publish.Median, r.Second.Mount.Median, r.Second.Native.Median = 0.06, 9e9, 10e9
	r.Second.Goals = secondGoals(r.Second)
	return r
}

func TestTable(t *testing.T) {
	var out strings.Builder
	if err := result().Write(&out); err != nil {
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

// TestGoals: a goal is about what was measured only, and gcsfuse is its best mode.
func TestGoals(t *testing.T) {
	r := result()
	got := map[string]float64{}
	reached := map[string]bool{}
	for _, l := range r.Loads {
		for _, g := range l.Goals {
			got[g.What], reached[g.What] = g.Got, g.Reached
		}
	}
	if len(got) != 6 { // limit, gcsfuse, streaming, CPU, memory; the start
		t.Errorf("%v", got)
	}
	if x := got["node: rate, times that of gcsfuse's best mode"]; x < 2.99 || x > 3.01 {
		t.Errorf("times gcsfuse: %v", x)
	}
	if over := startName + ", tensor parallel 1: per cent over the ideal"; !reached[over] || got[over] < 3.9 || got[over] > 4.1 {
		t.Errorf("over the ideal: %v", got[over])
	}
	if goals := r.Servers.Over[0].Goals; len(goals) != 1 || goals[0].Reached != true || goals[0].Got < 2.4 || goals[0].Got > 2.5 {
		t.Errorf("a transfer that fits into the head start: %+v", goals)
	}
	if goals := r.Servers.Over[1].Goals; len(goals) != 1 || !goals[0].Reached || goals[0].Got != 0.7 {
		t.Errorf("a transfer that takes longer: %+v", goals)
	}
	if goals := r.Second.Goals; goals[0].Reached || goals[1].Reached {
		t.Errorf("%+v", goals)
	}
}

// TestSVG: it is XML, has every name, and nothing lies outside.
func TestSVG(t *testing.T) {
	r := result()
	svg := r.SVG()
	d := xml.NewDecoder(bytes.NewReader(svg))
	var text strings.Builder
	rects := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch x := token.(type) {
		case xml.CharData:
			text.Write(x)
		case xml.StartElement:
			if x.Name.Local == "rect" {
				rects++
			}
		}
	}
	for _, want := range []string{limitName, streamName, bufferedName, startName + ", tensor parallel 1", "2 processors <fast>", "104.0 s, ideal 100.0 s", "450 MB/s, 1.50 CPU-s/GB, unchecked", runaiServer, "103.5 s, weights in 2.5 s"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in %s", want, text.String())
		}
	}
	if rects != 1+5+1+2+3+4 {
		t.Errorf("%d rects", rects)
	}
	if empty := (&Result{Loads: []Loads{{Name: Cold, Ways: []Way{{Name: nodeName}}}}}).SVG(); bytes.Contains(empty, []byte("NaN")) {
		t.Errorf("without a rate: %s", empty)
	}
}

func TestTensorsCheck(t *testing.T) {
	repo, _ := smallRepo(t)
	sum, err := tensorsOf(repo, []string{"config.json", "model.safetensors"})
	if err != nil || sum.bytes != weightsSize {
		t.Fatalf("%+v, %v", sum, err)
	}
	if err := sum.check(streamed{Bytes: sum.bytes, CRC32C: sum.crc}); err != nil {
		t.Error(err)
	}
	for _, bad := range []streamed{{Bytes: sum.bytes - 1, CRC32C: sum.crc}, {Bytes: sum.bytes, CRC32C: sum.crc + 1}} {
		if sum.check(bad) == nil {
			t.Errorf("%+v is right", bad)
		}
	}
}
