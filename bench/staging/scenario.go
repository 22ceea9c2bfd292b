package staging

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/headstart-serving/headstart/bench/link"
	"github.com/headstart-serving/headstart/bench/memory"
	"github.com/headstart-serving/headstart/bench/score"
)

// Names of the scenarios, in the order in which they run.
var Names = []string{"near", "far", "narrow", "discard"}

// scenario is one comparison.
type scenario struct {
	name, title string
	ways        []way
	rounds      int
	discard     bool                     // the bucket drops what it has summed
	shape       func(*bench) *link.Shape // of the network; nil for none
	goals       func(*Scenario) []score.Goal
}

// What the project promises (issue 4).
const (
	goalOfBare   = 0.9       // of the bare loop's rate
	goalOverBare = 0.1       // CPU-seconds a gigabyte over it
	goalOfLink   = 0.97      // of a link that is slower than the machine
	goalTimesHF  = 3         // times the rate of download and upload
	goalMemory   = 512 << 20 // bytes
)

func (b *bench) scenarios() ([]scenario, error) {
	stage, bare := stageWay(), bareWay()
	both := []way{stage, bare}
	all := both
	if b.HF != "" && b.Rclone != "" {
		all = append(slices.Clone(both), hfWay())
	} else {
		b.say("hf download and rclone are not measured, for their programs are not here: make bench-stage brings them")
	}
	known := []scenario{
		{name: "near", title: "loopback, nothing between", ways: all, rounds: b.Rounds, shape: nowhere, goals: nearGoals},
		{
			name: "far", ways: all, rounds: b.Rounds, shape: func(b *bench) *link.Shape { return &b.Far }, goals: farGoals,
			title: fmt.Sprintf("a round trip of %v, and %s/s for a single stream", b.Far.RoundTrip, score.Bytes(b.Far.Stream)),
		},
		{
			name: "narrow", ways: both, rounds: b.Rounds, shape: half, goals: narrowGoals,
			title: "a link of half of what the bare loop reaches without one, each way",
		},
		{
			name: "discard", ways: []way{stage}, rounds: b.Rounds, discard: true, shape: nowhere, goals: discardGoals,
			title: "loopback, into a bucket that sums what comes and drops it",
		},
	}
	var list []scenario
	for _, s := range known {
		if slices.Contains(b.Scenarios, s.name) {
			list = append(list, s)
		}
	}
	if slices.Contains(b.Scenarios, "narrow") && !slices.Contains(b.Scenarios, "near") {
		return nil, fmt.Errorf("scenario narrow needs scenario near, where the bare loop's rate is measured")
	}
	return list, nil
}

func nowhere(*bench) *link.Shape { return nil }

// half is a link of half of the bare loop's rate.
func half(b *bench) *link.Shape {
	return &link.Shape{Total: int64(b.result.scenario("near").way(bareName).Rate.Median) / 2}
}

func nearGoals(s *Scenario) []score.Goal {
	stage, bare := s.way(stageName), s.way(bareName)
	return []score.Goal{
		score.AtLeast("rate, of the bare loop's", goalOfBare, stage.Rate.Median/bare.Rate.Median),
		score.AtMost("CPU-s/GB over the bare loop's", goalOverBare, stage.CPU.Median-bare.CPU.Median),
		memoryGoal(stage),
	}
}

func farGoals(s *Scenario) []score.Goal {
	goals := []score.Goal{memoryGoal(s.way(stageName))}
	if hf := s.way(hfName); hf != nil {
		goals = append([]score.Goal{score.AtLeast("rate, times that of hf download + rclone copy", goalTimesHF, s.way(stageName).Rate.Median/hf.Rate.Median)}, goals...)
	}
	return goals
}

func narrowGoals(s *Scenario) []score.Goal {
	return []score.Goal{score.AtLeast("rate, of the link's", goalOfLink, s.way(stageName).Rate.Median/float64(s.Link.Total)), memoryGoal(s.way(stageName))}
}

func discardGoals(s *Scenario) []score.Goal { return []score.Goal{memoryGoal(s.way(stageName))} }

func memoryGoal(w *Way) score.Goal {
	return score.AtMost("peak memory, MiB", goalMemory>>20, w.Memory.Max/(1<<20))
}

// slack is how many bytes a run takes beside the model's: records of the bucket, memory of processes.
const slack = 1 << 30

// room fails before the first byte when the bucket, or what a peer puts on the disk, does not fit.
func (b *bench) room(list []scenario) error {
	for _, s := range list {
		need := int64(slack)
		if !s.discard {
			need += b.bytes
		}
		if err := roomFor(b.memory.Path(), need, "--scenario discard, or a smaller --model"); err != nil {
			return err
		}
		if tmpfs(b.memory.Path()) && !memory.Fits(need) {
			return &RoomError{Dir: "memory, with what others need of it,", Free: max(0, memory.Free()), Want: need, Instead: "a smaller --model, or a --bucket-dir on a disk"}
		}
		if slices.ContainsFunc(s.ways, func(w way) bool { return w.name == hfName }) {
			if err := roomFor(b.disk.Path(), b.bytes+slack, "another --scratch-dir, or a smaller --model"); err != nil {
				return err
			}
		}
	}
	return nil
}

func roomFor(dir string, need int64, instead string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return &RoomError{Dir: dir, Free: free, Want: need, Instead: instead}
	}
	return nil
}

func tmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// RoomError says that a place is too small.
type RoomError struct {
	Dir        string
	Free, Want int64 // bytes
	Instead    string
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("%s has %s free and the measurement needs %s: take %s", e.Dir, score.Bytes(e.Free), score.Bytes(e.Want), e.Instead)
}

func (e *RoomError) Unwrap() error { return unix.ENOSPC }
