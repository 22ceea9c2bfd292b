package bucket_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// verb is a request whose effect depends on the object /models/a.
type verb struct {
	name, method, path string
	xml                bool
	body               string
	read               bool // a "not match" that matches is 304
	missing            int  // the status when there is no such object; 0: it succeeds
	headers            []string
}

var verbs = []verb{
	{name: "get", method: "GET", path: "/storage/v1/b/models/o/a", read: true, missing: 404},
	{name: "media", method: "GET", path: "/storage/v1/b/models/o/a?alt=media", read: true, missing: 404},
	{name: "download", method: "GET", path: "/download/storage/v1/b/models/o/a?alt=media", read: true, missing: 404},
	{name: "patch", method: "PATCH", path: "/storage/v1/b/models/o/a", body: `{"contentType":"x/y"}`, missing: 404},
	{name: "update", method: "PUT", path: "/storage/v1/b/models/o/a", body: `{"contentType":"x/y"}`, missing: 404},
	{name: "delete", method: "DELETE", path: "/storage/v1/b/models/o/a", missing: 404},
	{name: "upload media", method: "POST", path: "/upload/storage/v1/b/models/o?uploadType=media&name=a", body: "x"},
	{name: "upload multipart", method: "POST", path: "/upload/storage/v1/b/models/o?uploadType=multipart&name=a",
		body: "--b\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--", headers: []string{"Content-Type: multipart/related; boundary=b"}},
	{name: "start", method: "POST", path: "/upload/storage/v1/b/models/o?uploadType=resumable&name=a"},
	{name: "compose", method: "POST", path: "/storage/v1/b/models/o/a/compose", body: `{"sourceObjects":[{"name":"src"}]}`},
	{name: "rewrite", method: "POST", path: "/storage/v1/b/models/o/src/rewriteTo/b/models/o/a"},
	{name: "copy", method: "POST", path: "/storage/v1/b/models/o/src/copyTo/b/models/o/a"},
	{name: "move", method: "POST", path: "/storage/v1/b/models/o/src/moveTo/o/a"},
	{name: "xml get", method: "GET", path: "/models/a", xml: true, read: true, missing: 404},
	{name: "xml head", method: "HEAD", path: "/models/a", xml: true, read: true, missing: 404},
	{name: "xml put", method: "PUT", path: "/models/a", xml: true, body: "x"},
	{name: "xml start", method: "POST", path: "/models/a", xml: true, headers: []string{"x-goog-resumable: start"}},
	{name: "xml delete", method: "DELETE", path: "/models/a", xml: true, missing: 404},
}

// with returns the verb's path and headers with a condition in its API's spelling.
func (v verb) with(cond, value string) (string, []string) {
	if v.xml {
		var dashed strings.Builder
		for _, c := range cond {
			if c >= 'A' && c <= 'Z' {
				dashed.WriteByte('-')
			}
			dashed.WriteRune(c)
		}
		return v.path, append([]string{"x-goog-" + strings.ToLower(dashed.String()) + ": " + value}, v.headers...)
	}
	sep := "?"
	if strings.Contains(v.path, "?") {
		sep = "&"
	}
	return v.path + sep + cond + "=" + value, v.headers
}

func TestPreconditionsOnEveryVerb(t *testing.T) {
	h := start(t, t.TempDir())
	// exact says for which value of a condition an object with this number passes.
	conds := []struct {
		name string
		not  bool
		meta bool
	}{{"ifGenerationMatch", false, false}, {"ifGenerationNotMatch", true, false}, {"ifMetagenerationMatch", false, true}, {"ifMetagenerationNotMatch", true, true}}
	for _, v := range verbs {
		for _, c := range conds {
			for _, exists := range []bool{true, false} {
				for _, equal := range []bool{true, false} {
					t.Run(fmt.Sprint(v.name, " ", c.name, " exists ", exists, " equal ", equal), func(t *testing.T) {
						h.upload(t, "src", []byte("s"))
						var number int64
						if exists {
							r := h.upload(t, "a", []byte("old"))
							number, _ = strconv.ParseInt(r.Generation, 10, 64)
							if c.meta {
								number = 1
							}
						} else {
							h.ask(t, "DELETE", "/models/a", nil)
						}
						if !equal {
							number += 5
						}
						path, headers := v.with(c.name, strconv.FormatInt(number, 10))
						a := h.ask(t, v.method, path, []byte(v.body), headers...)
						holds := equal != c.not
						switch {
						case !exists && v.missing != 0:
							a.want(t, v.missing)
						case holds:
							if a.status/100 != 2 {
								t.Fatalf("%d: %s", a.status, a.body)
							}
						case v.read && c.not:
							a.want(t, 304)
						default:
							a.want(t, 412)
							switch {
							case v.method == "HEAD":
							case v.xml && !strings.Contains(string(a.body), "<Code>PreconditionFailed</Code>"):
								t.Errorf("%s", a.body)
							case !v.xml && !strings.Contains(path, "alt=media"):
								if e := a.resource(t).Error; e.Code != 412 || e.Errors[0].Reason != "conditionNotMet" {
									t.Errorf("%s", a.body)
								}
							}
							if exists {
								if got := h.ask(t, "GET", "/models/a", nil); string(got.body) != "old" {
									t.Errorf("a refused request changed the object to %q", got.body)
								}
							}
						}
					})
				}
			}
		}
	}
}

func TestSourcePreconditions(t *testing.T) {
	h := start(t, t.TempDir())
	g := h.upload(t, "src", []byte("s")).Generation
	for query, want := range map[string]int{
		"sourceGeneration=" + g: 200, "sourceGeneration=7": 404, "sourceGeneration=x": 400,
		"ifSourceGenerationMatch=" + g: 200, "ifSourceGenerationMatch=7": 412,
		"ifSourceGenerationNotMatch=" + g: 412, "ifSourceMetagenerationMatch=1": 200, "ifSourceMetagenerationMatch=2": 412,
		"ifSourceMetagenerationNotMatch=1": 412,
	} {
		for _, verb := range []string{"rewriteTo", "copyTo"} {
			if a := h.ask(t, "POST", "/storage/v1/b/models/o/src/"+verb+"/b/models/o/dst?"+query, nil); a.status != want {
				t.Errorf("%s %s: %d, want %d", verb, query, a.status, want)
			}
		}
	}
}

// gcsfuse names generation 0 when it means the live one.
func TestGenerationZeroIsTheLiveOne(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	h.ask(t, "GET", "/storage/v1/b/models/o/a?generation=0", nil).want(t, 200)
	h.ask(t, "GET", "/storage/v1/b/models/o/a?generation=-1", nil).want(t, 400)
	h.ask(t, "DELETE", "/storage/v1/b/models/o/a?generation=0", nil).want(t, 204)
}

func TestMalformedConditions(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	for _, v := range verbs {
		path, headers := v.with("ifGenerationMatch", "one")
		if a := h.ask(t, v.method, path, []byte(v.body), headers...); a.status != 400 {
			t.Errorf("%s: %d", v.name, a.status)
		}
	}
}

func TestEntityTags(t *testing.T) {
	h := start(t, t.TempDir())
	h.upload(t, "a", []byte("x"))
	for _, path := range []string{"/models/a", "/storage/v1/b/models/o/a", "/storage/v1/b/models/o/a?alt=media"} {
		tag := h.ask(t, "GET", path, nil).want(t, 200).header.Get("ETag")
		h.ask(t, "GET", path, nil, "If-None-Match: "+tag).want(t, 304)
		h.ask(t, "GET", path, nil, "If-Match: "+tag).want(t, 200)
		h.ask(t, "GET", path, nil, `If-None-Match: "other"`).want(t, 200)
		h.ask(t, "GET", path, nil, `If-Match: "other"`).want(t, 412)
	}
}

// Two writers that both want to be the first: one of them is.
func TestOneCreatorWins(t *testing.T) {
	h := start(t, t.TempDir())
	const writers = 8
	results := make(chan int, writers)
	for i := range writers {
		go func() {
			a, err := h.try("POST", "/upload/storage/v1/b/models/o?uploadType=media&name=a&ifGenerationMatch=0", strings.NewReader(fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
			}
			results <- a.status
		}()
	}
	count := map[int]int{}
	for range writers {
		count[<-results]++
	}
	if count[200] != 1 || count[412] != writers-1 {
		t.Errorf("answers: %v", count)
	}
}
