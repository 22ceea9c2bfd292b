package hub_test

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/headstart-serving/headstart/stager/hub"
)

// node is a tree entry as a client sees it.
type node struct {
	Type, OID, Path string
	Size            int64
	LFS             *struct {
		OID         string
		Size        int64
		PointerSize int
	}
	XetHash    string
	LastCommit *struct{ ID, Title, Date string }
}

// page asks for one page and returns it with the URL of the next.
func (s *served) page(to string) (entries []node, next string) {
	s.t.Helper()
	r := s.get(to)
	r.expect(s.t, 200)
	r.decode(s.t, &entries)
	if link := r.Header.Get("Link"); link != "" {
		to, rel, _ := strings.Cut(link, ">; ")
		if rel != `rel="next"` || !strings.HasPrefix(to, "<http://") {
			s.t.Fatalf("Link %q", link)
		}
		next = to[1:]
	}
	return entries, next
}

func paths(entries []node) string {
	var names []string
	for _, e := range entries {
		names = append(names, e.Path)
	}
	return strings.Join(names, " ")
}

func TestTree(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	text := tiny().content["model.safetensors"]
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:" + sum + "\nsize 1024\n"

	entries, next := s.page("/api/models/org/tiny/tree/main?recursive=true&expand=false")
	if got := paths(entries); got != "config.json empty.txt model.safetensors tokenizer tokenizer/vocab.md" || next != "" {
		t.Fatalf("tree %s, next %q", got, next)
	}
	config, model, dir := entries[0], entries[2], entries[3]
	if config.Type != "file" || config.Size != 21 || config.LFS != nil || config.OID != fmt.Sprintf("%x", hub.GitSHA1([]byte(tiny().content["config.json"]))) {
		t.Errorf("small file %+v", config)
	}
	if model.Size != 1024 || model.LFS.OID != sum || model.LFS.Size != 1024 || model.LFS.PointerSize != len(pointer) ||
		model.OID != fmt.Sprintf("%x", hub.GitSHA1([]byte(pointer))) || model.XetHash != "" {
		t.Errorf("LFS file %+v %+v", model, model.LFS)
	}
	if dir.Type != "directory" || dir.Size != 0 || len(dir.OID) != 40 {
		t.Errorf("directory %+v", dir)
	}

	for to, want := range map[string]string{
		"main":                         "config.json empty.txt model.safetensors tokenizer",
		commit1 + "/tokenizer":         "tokenizer/vocab.md",
		"main/?recursive=True":         "config.json empty.txt model.safetensors tokenizer tokenizer/vocab.md",
		"refs%2Fheads%2Fmain?limit=2":  "config.json empty.txt",
		"main?limit=-1&recursive=nope": "config.json empty.txt model.safetensors tokenizer",
	} {
		if entries, _ := s.page("/api/models/org/tiny/tree/" + to); strings.TrimSpace(paths(entries)) != want {
			t.Errorf("tree/%s: %s, want %s", to, paths(entries), want)
		}
	}
	entries, _ = s.page("/api/models/org/tiny/tree/main?expand=true")
	if c := entries[0].LastCommit; c == nil || c.ID != commit1 {
		t.Errorf("lastCommit %+v", c)
	}
}

func TestPagesHaveEveryEntryOnce(t *testing.T) {
	r := memory{name: "org/many", commit: commit1, content: map[string]string{}}
	for i := range 12 {
		r.content[fmt.Sprintf("d%d/ä +%%%02d.txt", i%2, i)] = ""
	}
	const entries = 12 + 2
	for _, size := range []int{1, 2, entries - 1, entries, entries + 1, 2 * entries} {
		s := serve(t, hub.Config{PageSize: size}, r)
		var got []node
		pages := 0
		for next := "/api/models/org/many/tree/main?recursive=true&expand=false"; next != ""; pages++ {
			var page []node
			if page, next = s.page(next); len(page) > size {
				t.Fatalf("a page of %d, want at most %d", len(page), size)
			}
			got = append(got, page...)
		}
		if len(got) != entries {
			t.Errorf("page size %d: %d entries", size, len(got))
		}
		for i := 1; i < len(got); i++ {
			if got[i-1].Path >= got[i].Path {
				t.Errorf("page size %d: %q before %q", size, got[i-1].Path, got[i].Path)
			}
		}
		if want := (entries + size - 1) / size; pages != want {
			t.Errorf("page size %d: %d pages, want %d", size, pages, want)
		}
	}
}

func TestPathsInfo(t *testing.T) {
	s := serve(t, hub.Config{}, tiny())
	ask := func(kind, body string) []node {
		t.Helper()
		r, err := s.send("POST", "/api/models/org/tiny/paths-info/main", strings.NewReader(body), "Content-Type", kind)
		if err != nil {
			t.Fatal(err)
		}
		r.expect(t, 200)
		var entries []node
		r.decode(t, &entries)
		return entries
	}
	form := url.Values{"paths": {"model.safetensors", "none", "tokenizer"}, "expand": {"false"}}.Encode()
	if got := paths(ask("application/x-www-form-urlencoded", form)); got != "model.safetensors tokenizer" {
		t.Errorf("form: %s", got)
	}
	if got := paths(ask("application/json", `{"paths":["config.json"],"expand":true}`)); got != "config.json" {
		t.Errorf("JSON: %s", got)
	}
	if got := ask("application/json", `{"paths":[]}`); got == nil || len(got) != 0 {
		t.Errorf("nothing: %v, want an empty list", got)
	}
	for kind, body := range map[string]string{
		"application/json": "{", "application/x-www-form-urlencoded": "paths=%zz", "text/plain": strings.Repeat("x", 1<<20+1),
	} {
		r, err := s.send("POST", "/api/models/org/tiny/paths-info/main", strings.NewReader(body), "Content-Type", kind)
		if err != nil {
			t.Fatal(err)
		}
		r.expect(t, 400)
	}
}

func TestInfo(t *testing.T) {
	s := guarded(t)
	type info struct {
		ID, ModelID, SHA, LastModified string
		Private, Disabled              bool
		Gated                          any
		Siblings                       []struct {
			RFilename, BlobID string
			Size              *int64
			LFS               *struct {
				SHA256      string
				Size        int64
				PointerSize int
			}
		}
	}
	var short, long info
	s.get("/api/models/org/tiny").decode(t, &short)
	if short.ID != "org/tiny" || short.ModelID != "org/tiny" || short.SHA != commit1 || short.Gated != false || short.Private || short.Disabled ||
		short.LastModified != "2025-06-15T15:06:40.000Z" || len(short.Siblings) != 4 || short.Siblings[2].Size != nil || short.Siblings[2].LFS != nil {
		t.Errorf("info %+v", short)
	}
	s.get("/api/models/org/tiny/revision/"+commit1+"?blobs=true").decode(t, &long)
	model := long.Siblings[2]
	if model.RFilename != "model.safetensors" || *model.Size != 1024 || len(model.BlobID) != 40 || model.LFS.Size != 1024 ||
		model.LFS.SHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte(tiny().content["model.safetensors"]))) {
		t.Errorf("info with blobs %+v", model)
	}
	if empty := long.Siblings[1]; empty.Size == nil || *empty.Size != 0 || empty.LFS != nil {
		t.Errorf("info with blobs of an empty file %+v", empty)
	}
	var some map[string]any
	s.get("/api/models/org/gated?expand=gated&expand=sha").decode(t, &some)
	if len(some) != 4 || some["gated"] != "manual" || some["sha"] != commit1 {
		t.Errorf("info with expand %v", some)
	}
}

func TestRevisions(t *testing.T) {
	r1, r2 := tiny(), tiny()
	r2.commit = commit2
	r2.content = map[string]string{"config.json": "new"}
	s := serve(t, hub.Config{}, r1)
	sha := func(rev string, want string) {
		t.Helper()
		var info struct{ SHA string }
		r := s.get("/api/models/org/tiny/revision/" + url.PathEscape(rev))
		r.expect(t, 200)
		if r.decode(t, &info); info.SHA != want {
			t.Errorf("revision %s is %s, want %s", rev, info.SHA, want)
		}
	}
	sha("main", commit1)
	s.Push(r2)
	for ref, commit := range map[string]string{"refs/heads/dev/x": commit1, "refs/tags/v1": commit1, "refs/pr/1": commit2} {
		if err := s.SetRef("org/tiny", ref, commit); err != nil {
			t.Error(err)
		}
	}
	for rev, want := range map[string]string{"main": commit2, "refs/heads/main": commit2, commit1: commit1, commit2: commit2, "dev/x": commit1, "v1": commit1, "refs/pr/1": commit2} {
		sha(rev, want)
	}
	s.get("/org/tiny/resolve/v1/model.safetensors").expect(t, 302, "X-Repo-Commit", commit1)
	s.get("/org/tiny/resolve/main/model.safetensors").expect(t, 404, "X-Repo-Commit", commit2)

	type ref struct{ Name, Ref, TargetCommit string }
	var refs struct{ Branches, Tags, Converts, PullRequests []ref }
	s.get("/api/models/org/tiny/refs?include_prs=1").decode(t, &refs)
	want := fmt.Sprint([]ref{{"main", "refs/heads/main", commit2}, {"dev/x", "refs/heads/dev/x", commit1}},
		[]ref{{"v1", "refs/tags/v1", commit1}}, []ref{}, []ref{{"refs/pr/1", "refs/pr/1", commit2}})
	if got := fmt.Sprint(refs.Branches, refs.Tags, refs.Converts, refs.PullRequests); got != want || refs.Converts == nil {
		t.Errorf("refs %s, want %s", got, want)
	}
	refs.PullRequests = nil
	if s.get("/api/models/org/tiny/refs").decode(t, &refs); refs.PullRequests != nil {
		t.Error("pull requests that nobody asked for")
	}

	for _, bad := range [][3]string{{"org/none", "refs/tags/x", commit1}, {"org/tiny", "refs/tags/x", strings.Repeat("3", 40)}, {"org/tiny", "x", commit1}} {
		if err := s.SetRef(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("SetRef(%q) succeeded", bad)
		}
	}
}

func FuzzCursor(f *testing.F) {
	h := hub.New(hub.Config{}, tiny()).Handler()
	f.Add("")
	f.Add("ZXlKbWFXeGxYMjVoYldVaU9pSmpiMjVtYVdjdWFuTnZiaUo5OjE=")
	f.Fuzz(func(t *testing.T, cursor string) {
		w := newSink()
		h.ServeHTTP(w, getRequest(t, "http://hub/api/models/org/tiny/tree/main?cursor="+url.QueryEscape(cursor)))
		if w.status != 200 && w.status != 400 {
			t.Errorf("cursor %q: status %d", cursor, w.status)
		}
	})
}
