package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/headstart-serving/headstart"

// rule says what the packages below a folder may import of this module. "/..." means all below.
type rule struct {
	folder string
	allow  []string
	tests  []string // what their tests may import besides
}

// rules is who may import whom; the first rule whose folder matches counts. manifest is free to all.
var rules = []rule{
	{"manifest", nil, nil},
	{"cmd/...", []string{"stager/...", "loader/...", "csi/...", "diskimage/...", "bench/..."}, nil},
	{"stager/bucket", nil, nil}, // a server that any client talks to: it knows no client of ours
	{"stager/hub/...", []string{"stager/hub/..."}, nil},
	{"stager/hf", []string{"stager", "stager/hf/xet"}, []string{"stager/..."}},
	{"stager/hf/xet", nil, []string{"stager/..."}},
	{"stager/gcs", []string{"stager"}, []string{"stager/..."}},
	{"stager/file", []string{"stager"}, []string{"stager/..."}},
	{"stager/dir", []string{"stager"}, []string{"stager/..."}},
	{"stager/staged", []string{"stager"}, []string{"stager/..."}},
	{"stager/safetensors", nil, nil},                                  // the format: it knows no model and no bucket
	{"stager/stagertest", []string{"stager"}, []string{"stager/..."}}, // a store for the tests of the rest
	{"stager/inventory", []string{"stager"}, []string{"stager/..."}},
	{"stager/sweep", []string{"stager", "stager/inventory"}, []string{"stager/..."}},
	{"stager/...", []string{"stager/safetensors"}, []string{"stager/..."}},
	{"loader/memory", nil, nil},
	{"loader/tmpfs", []string{"loader/mount"}, []string{"loader/..."}},
	{"loader/cache", []string{"loader/memory", "loader/tmpfs"}, []string{"loader/..."}},
	{"loader/fetch", []string{"loader/cache"}, []string{"loader/...", "stager/bucket"}},
	{"loader/gcs", []string{"loader/fetch"}, []string{"loader/...", "stager/bucket"}},
	{"loader/file", []string{"loader/fetch"}, []string{"loader/..."}},
	{"loader/modelfs", []string{"loader/mount"}, []string{"loader/..."}},
	{"loader/keeper", nil, nil},
	{"loader/order", nil, []string{"loader/fetch/fetchtest"}},
	{"loader/mount/...", []string{"loader/mount"}, []string{"loader/..."}},
	{"loader/control", []string{"loader"}, []string{"loader/..."}},
	{"loader/...", []string{"loader/..."}, []string{"stager/bucket"}},
	{"csi/...", []string{"csi/..."}, nil},
	{"diskimage/...", []string{"diskimage/..."}, nil},
	{"bench/link", nil, nil},
	{"bench/child", nil, nil},
	{"bench/memory", []string{"loader/memory"}, nil},
	{"bench/memory", nil, nil},
	{"bench/usage", nil, nil},
	{"bench/score", nil, nil},
	{"bench/server", []string{"bench/child"}, nil},
	{"bench/loading/limit", nil, []string{"bench/loading/reading"}}, // it must owe nothing to what it measures
	{"bench/loading/reading", nil, nil},
	{"bench/place", []string{"loader/mount"}, nil},
	{"deploy/...", nil, []string{"stager/bucket", "stager/hub"}}, // its tests run the binary, as a cluster would
	{"bench/...", []string{"bench/...", "stager/...", "loader/..."}, nil},
}

// sdks are the clouds' clients, and the only packages that may know them.
var sdks = map[string][]string{
	"cloud.google.com/go/storage": {"stager/gcs", "loader/gcs"},
	"cloud.google.com/go/compute": {"diskimage/gce"},
}

func matches(pattern, pkg string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return pkg == pattern
}

func TestImports(t *testing.T) {
	type listed struct {
		ImportPath                         string
		Imports, TestImports, XTestImports []string
	}
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(out))
	for n := 0; ; n++ {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			if n < 2 {
				t.Fatalf("only %d packages listed", n)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
		pkg := strings.TrimPrefix(p.ImportPath, module+"/")
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.folder, pkg) })
		if i < 0 {
			t.Errorf("%s: no rule for this folder", pkg)
			continue
		}
		check(t, pkg, p.Imports, rules[i].allow)
		check(t, pkg+" (test)", slices.Concat(p.TestImports, p.XTestImports), slices.Concat(rules[i].allow, rules[i].tests, []string{pkg}))
		if pkg == "manifest" {
			standardOnly(t, p.Imports)
		}
		for _, imported := range p.Imports {
			for sdk, users := range sdks {
				if strings.HasPrefix(imported, sdk) && !slices.Contains(users, pkg) {
					t.Errorf("%s imports %s: only %v may", pkg, imported, users)
				}
			}
		}
	}
}

func check(t *testing.T, pkg string, imports, allow []string) {
	t.Helper()
	for _, imported := range imports {
		of, ours := strings.CutPrefix(imported, module+"/")
		if !ours || of == "manifest" {
			continue
		}
		if !slices.ContainsFunc(allow, func(a string) bool { return matches(a, of) }) {
			t.Errorf("%s imports %s: it may import manifest and %v", pkg, of, allow)
		}
	}
}

func standardOnly(t *testing.T, imports []string) {
	t.Helper()
	for _, imported := range imports {
		if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
			t.Errorf("manifest imports %s: the standard library only", imported)
		}
	}
}
