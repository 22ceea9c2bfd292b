package stager_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
	"github.com/headstart-serving/headstart/stager"
	"github.com/headstart-serving/headstart/stager/staged"
)

// TestFromBucketThroughFaults copies a model between two Cloud Storage buckets while the first one fails
// reads. What can be repeated is, and what comes wrong is named and not committed.
func TestFromBucketThroughFaults(t *testing.T) {
	r := exampleRepo()
	for _, test := range []struct {
		faults []string
		sum    bool // the bytes come wrong
	}{
		{faults: []string{"return-503", "return-500", "return-429"}},
		{faults: []string{"return-reset-connection", "return-reset-connection"}},
		{faults: []string{"return-broken-stream", "return-broken-stream-after-16K", "return-broken-stream-after-32K", "return-broken-stream"}},
		{faults: append(make([]string, 40), "return-corrupted-data"), sum: true},
	} {
		t.Run(strings.Join(test.faults, " "), func(t *testing.T) {
			b, open := serveBuckets(t)
			first, err := stage(t, &memory{repo: r}, open("models", nil))
			if err != nil {
				t.Fatal(err)
			}
			from := open("models", nil)
			source := looked{staged.New(from), func() {
				if err := b.Plan("storage.objects.get", test.faults...); err != nil {
					t.Fatal(err)
				}
			}}
			to := open("others", nil)
			got, err := stager.New(stager.Config{Source: source, Store: to}).Stage(t.Context(), manifest.Reference{Repo: r.name})
			if test.sum {
				if _, ok := errors.AsType[*manifest.MismatchError](err); !ok {
					t.Fatalf("%v", err)
				}
				if _, _, err := to.Get(t.Context(), first.Manifest.Model.Key(), manifest.MaxSize); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a manifest is there: %v", err)
				}
				return
			}
			if err != nil || got.Sum != first.Sum {
				t.Fatalf("%+v, %v", got, err)
			}
			checkStaged(t, to, r)
		})
	}
}

// looked does something when the files of a model that is staged elsewhere have been listed.
type looked struct {
	*staged.Source
	then func()
}

func (l looked) Files(ctx context.Context, m manifest.Model) ([]stager.RemoteFile, error) {
	files, err := l.Source.Files(ctx, m)
	l.then()
	return files, err
}
