package inventory

import (
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/manifest"
)

// FuzzParse checks that a key is of the model that it would be made for, and of no other.
func FuzzParse(f *testing.F) {
	one := strings.Repeat("1", 40)
	m := manifest.Model{Repo: "org/name", Commit: one}
	for _, key := range []string{
		m.Key(), m.OrderKey(), manifest.RefKey("org/name", "refs/pr/1"), manifest.RefKey("gpt2", "main"), PartsOf(m) + "x/y", PartsOf(manifest.Model{Repo: "gpt2", Commit: one}) + "x/y",
		".headstart/parts/put-x", ".headstart/parts/" + one + "/" + one + "/" + one + "/x", ".headstart/a/refs/refs/x", ".headstart/../x/refs/y",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k, m, name := parse(key)
		switch k {
		case commitKey:
			if m.Key() != key {
				t.Errorf("%q is taken for the manifest of %s", key, m)
			}
		case orderKey:
			if m.OrderKey() != key {
				t.Errorf("%q is taken for the order of %s", key, m)
			}
		case refKey:
			if manifest.RefKey(m.Repo, name) != key || m.Commit != "" {
				t.Errorf("%q is taken for the ref %q of %s", key, name, m)
			}
		case partKey:
			if !strings.HasPrefix(key, PartsOf(m)) || manifest.ValidRepo(m.Repo) != nil || !manifest.IsCommit(m.Commit) {
				t.Errorf("%q is taken for a part of %s", key, m)
			}
		case tempKey:
			if !strings.HasPrefix(key, ".headstart/parts/put-") {
				t.Errorf("%q is taken for a temporary file", key)
			}
		}
	})
}

func TestCommitOf(t *testing.T) {
	one := strings.Repeat("1", 40)
	for key, want := range map[string]string{
		"org/name/" + one + "/a": one, "org/name/" + one + "/a/b": one, "org/name/" + one: "", "org/name/" + one + "/": "", "org/name/main/a": "",
		"org/nam/" + one + "/a": "", "org/name/" + one + "/../a": "", "org/name/" + one + "/.headstart/a": "", "x/org/name/" + one + "/a": "",
	} {
		if got := commitOf("org/name", key); got != want {
			t.Errorf("%q is below %q, want %q", key, got, want)
		}
	}
}
