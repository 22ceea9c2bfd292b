package stager_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// fault is what happens to one request.
type fault struct {
	name string
	on   func(kind) bool // nil: every request
	do   func(*exchange)
	// heals are the requests after which a run comes through all the same (nil: none must). Elsewhere it
	// may, or ends with an error that says what is wrong.
	heals func(kind) bool
}

func only(kinds ...kind) func(kind) bool {
	return func(k kind) bool {
		for _, one := range kinds {
			if k == one {
				return true
			}
		}
		return false
	}
}

func not(f func(kind) bool) func(kind) bool { return func(k kind) bool { return !f(k) } }

var (
	all    = func(kind) bool { return true }
	ofHub  = only(info, tree, resolve, small, cdn)
	ofBody = not(only(resolve, remove)) // requests whose answers have a body
	files  = only(small, cdn)
	ranges = only(small, cdn)
)

// status answers without doing anything.
func status(code int, headers ...string) fault {
	name := fmt.Sprintf("return-%d", code)
	if len(headers) > 0 {
		name += fmt.Sprintf(" %.60s", strings.Join(headers, ", "))
	}
	return fault{name: name, do: func(x *exchange) {
		io.Copy(io.Discard, x.r.Body)
		h := http.Header{"Content-Type": {"application/json"}}
		for _, line := range headers {
			k, v, _ := strings.Cut(line, ": ")
			h.Set(k, v)
		}
		if code < 200 || code == 204 || code == 304 {
			copyHeader(x.w.Header(), h)
			x.w.WriteHeader(code)
			return
		}
		x.send(code, h, fmt.Appendf(nil, `{"error":{"code":%d,"message":"A fault that was asked for.","errors":[{"message":"A fault that was asked for.","reason":"fault"}]}}`, code))
	}}
}

func copyHeader(to, from http.Header) {
	for k, v := range from {
		to[k] = v
	}
}

// late does what is asked for, and answers with an error.
func late(code int) fault {
	return fault{name: fmt.Sprintf("return-%d after the deed", code), do: func(x *exchange) {
		x.answer()
		status(code).do(x)
	}}
}

// reshape changes an answer and sends it as a server that means well.
func reshape(name string, on func(kind) bool, change func(x *exchange, a *http.Response, data []byte) []byte) fault {
	return fault{name: name, on: on, do: func(x *exchange) {
		a := x.answer()
		data := body(a)
		data = change(x, a, bytes.Clone(data))
		a.Header.Del("Content-Length")
		if x.r.Method == http.MethodHead {
			copyHeader(x.w.Header(), a.Header)
			x.w.WriteHeader(a.StatusCode)
			return
		}
		x.send(a.StatusCode, a.Header, data)
	}}
}

// header changes a header of the answer; an empty value removes it.
func header(on func(kind) bool, name, value string) fault {
	return reshape("header "+name+": "+value, on, func(_ *exchange, a *http.Response, data []byte) []byte {
		if a.Header.Del(name); value != "" {
			a.Header.Set(name, value)
		}
		return data
	})
}

// cut sends what it announced up to a point.
func cut(name string, on func(kind) bool, at func(n int) int) fault {
	return fault{name: name, on: on, do: func(x *exchange) {
		a := x.answer()
		data := body(a)
		x.raw(a, int64(len(data)), data[:at(len(data))])
	}}
}

// pause sends the answer's head and a part of the body, waits, and goes on.
func pause(name string, on func(kind) bool, d time.Duration, at func(n int) int) fault {
	return fault{name: name, on: on, do: func(x *exchange) {
		a := x.answer()
		data := body(a)
		copyHeader(x.w.Header(), a.Header)
		x.w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if x.r.Method == http.MethodHead || a.StatusCode == http.StatusNoContent {
			x.w.Header().Del("Content-Length")
			copyHeader(x.w.Header(), a.Header)
		}
		n := at(len(data))
		if n >= 0 {
			x.w.WriteHeader(a.StatusCode)
			x.w.Write(data[:n])
			http.NewResponseController(x.w).Flush()
		}
		x.wait(d)
		if n < 0 {
			n = 0
			x.w.WriteHeader(a.StatusCode)
		}
		x.w.Write(data[n:])
	}}
}

func (f fault) healing(kinds func(kind) bool) fault { f.heals = kinds; return f }

func half(n int) int     { return n / 2 }
func nothing(int) int    { return 0 }
func butOne(n int) int   { return max(n-1, 0) }
func headless(int) int   { return -1 }
func goneAway(n int) int { return n }

const week = 7 * 24 * time.Hour

// html is a page for people, as a portal or a proxy answers.
const html = "<!DOCTYPE html><html><body>We are down for maintenance.</body></html>\n"

func zipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(data)
	z.Close()
	return b.Bytes()
}

// faultTable are the faults that are tried at every request of a run. The names that googleapis/
// storage-testbench has too mean the same.
var faultTable = []fault{
	// An answer that asks to come again.
	status(408).healing(all), status(429).healing(all), status(500).healing(all), status(502).healing(all), status(503).healing(all), status(504).healing(all),
	status(429, "Retry-After: 7").healing(all), status(503, "Retry-After: 3").healing(all),
	status(429, `RateLimit: "resolvers";r=0;t=55`, `RateLimit-Policy: "fixed window";"resolvers";q=3000;w=300`).healing(all),
	status(429, "Retry-After: -1").healing(all), status(429, "Retry-After: 99999999999999999999").healing(all),
	status(429, "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT").healing(all), status(429, `RateLimit: r=0;t=999999999`).healing(all),
	status(429, "RateLimit: "+strings.Repeat(";r=0;t=", 500)).healing(all),
	late(500).healing(all), late(503).healing(all), late(429).healing(all), late(408).healing(all),

	// An answer that is out of place.
	status(400), status(401), status(403), status(404), status(405), status(409), status(410), status(411), status(412), status(413), status(416), status(418),
	status(421), status(451), status(501), status(505), status(507), status(511), status(599), status(204), status(205), status(206), status(304), status(300),
	late(401), late(403), late(404), late(412), late(416),
	{name: "signed URL that has expired", on: only(cdn), heals: all, do: func(x *exchange) {
		x.plain(403, "application/xml", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>`)
	}},

	// Connections.
	{name: "return-reset-connection", heals: all, do: func(x *exchange) { x.hijack().Reset() }},
	{name: "return-reset-connection after the deed", heals: all, do: func(x *exchange) { x.answer(); x.hijack().Reset() }},
	{name: "connection closed", heals: all, do: func(x *exchange) { x.hijack().Close() }},
	{name: "half of a status line", heals: ofHub, do: func(x *exchange) {
		c := x.hijack()
		io.WriteString(c, "HTTP/1.1 20")
		c.Close()
	}},
	{name: "half of the headers", heals: ofHub, do: func(x *exchange) {
		c := x.hijack()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Re")
		c.Close()
	}},
	{name: "another protocol", do: func(x *exchange) {
		c := x.hijack()
		io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n")
		c.Close()
	}},
	{name: "headers without end", do: func(x *exchange) {
		c := x.hijack()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for range 64 {
			io.WriteString(c, "X-A: "+strings.Repeat("a", 64<<10)+"\r\n")
		}
		c.Close()
	}},
	cut("return-broken-stream-after-0K", ofBody, nothing).healing(all), cut("return-broken-stream", ofBody, half).healing(all),
	cut("return-broken-stream before the last byte", ofBody, butOne).healing(all),
	pause("stall-for-20s", nil, 20*time.Second, headless).healing(all), pause("stall-for-20s-after-0K", ofBody, 20*time.Second, nothing).healing(all),
	pause("stall-for-20s-after-half", ofBody, 20*time.Second, half).healing(all), pause("stall-for-50s-after-half", ofBody, 50*time.Second, half).healing(all),
	pause("stall-always", nil, week, headless).healing(all), pause("stall-always after the headers", ofBody, week, nothing).healing(all),
	pause("stall-at-half", ofBody, week, half).healing(all),
	pause("stall-always before the end", ofBody, week, goneAway).healing(all),

	// Bytes.
	reshape("return-corrupted-data", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte {
		if len(d) > 0 {
			d[len(d)/2] ^= 1
		}
		return d
	}),
	reshape("first byte wrong", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte {
		if len(d) > 0 {
			d[0] ^= 0x40
		}
		return d
	}),
	reshape("short body", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return d[:half(len(d))] }),
	reshape("body without its last byte", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return d[:butOne(len(d))] }),
	reshape("empty body", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return nil }),
	reshape("long body", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return append(d, d...) }),
	reshape("one byte more", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return append(d, 'x') }),
	reshape("zeros", ofBody, func(_ *exchange, _ *http.Response, d []byte) []byte { return make([]byte, len(d)) }),
	{name: "Content-Length too large", on: ofBody, do: func(x *exchange) { a := x.answer(); d := body(a); x.raw(a, int64(len(d))+10, d) }},
	{name: "Content-Length too small", on: ofBody, do: func(x *exchange) { a := x.answer(); d := body(a); x.raw(a, int64(max(0, len(d)-10)), d) }},
	{name: "Content-Length huge", on: ofBody, do: func(x *exchange) { a := x.answer(); d := body(a); x.raw(a, 1<<62, d) }},
	{name: "no Content-Length", on: ofBody, do: func(x *exchange) { a := x.answer(); d := body(a); x.raw(a, -1, d) }},
	{name: "no Content-Length, cut", on: ofBody, do: func(x *exchange) { a := x.answer(); d := body(a); x.raw(a, -1, d[:half(len(d))]) }},
	{name: "endless-body", on: ofBody, do: func(x *exchange) {
		x.w.Header().Set("Content-Type", "application/json")
		blank := bytes.Repeat([]byte(" "), 64<<10)
		for range 1 << 12 { // 256 MiB are without end for whoever is asked for a few KiB
			if _, err := x.w.Write(blank); err != nil {
				return
			}
		}
	}},

	// Ranges.
	header(ranges, "Content-Range", "").healing(all), header(ranges, "Content-Range", "nonsense").healing(all),
	header(ranges, "Content-Range", "bytes 0-0/1"), header(ranges, "Content-Range", "bytes 17-18/20497"), header(ranges, "Content-Range", "bytes 0-99/*"),
	header(ranges, "Content-Range", "bytes 99999999999999999999-99999999999999999999/99999999999999999999"),
	{name: "a proxy that strips ranges", on: ranges, heals: all, do: func(x *exchange) {
		x.r.Header.Del("Range")
		x.world.handle(&counting{x.w, x.world}, x.r)
	}},
	reshape("200 for a part", ranges, func(_ *exchange, a *http.Response, d []byte) []byte {
		a.StatusCode = 200
		a.Header.Del("Content-Range")
		return d
	}),
	{name: "the bytes of another range", on: ranges, do: func(x *exchange) {
		x.r.Header.Set("Range", "bytes=0-9")
		a := x.answer()
		d := body(a)
		if a.StatusCode == 206 {
			a.Header.Set("Content-Range", strings.Replace(a.Header.Get("Content-Range"), "bytes 0-9/", "bytes 4096-4105/", 1))
		}
		a.Header.Del("Content-Length")
		x.send(a.StatusCode, a.Header, d)
	}},

	// Headers.
	header(ofHub, "X-Repo-Commit", "badc0de5badc0de5badc0de5badc0de5badc0de5"), header(ofHub, "X-Repo-Commit", ""),
	header(only(resolve), "X-Linked-Size", "17"), header(only(resolve), "X-Linked-Size", "-1"), header(only(resolve), "X-Linked-Size", "").healing(all),
	header(only(resolve), "X-Linked-Etag", `"`+strings.Repeat("0", 64)+`"`), header(only(resolve), "X-Linked-Etag", "").healing(all),
	header(only(resolve), "Location", "http://evil.test/x"), header(only(resolve), "Location", "ftp://evil.test/x"), header(only(resolve), "Location", ""),
	header(only(resolve), "Location", "://"), header(only(resolve), "Location", "javascript:alert(1)"), header(only(resolve), "Location", "/"),
	header(only(tree), "Link", `<http://evil.test/x>; rel="next"`), header(only(tree), "Link", `</relative>; rel="next"`), header(only(tree), "Link", ""),
	header(all, "Content-Type", "text/html"), header(all, "Content-Type", ""),
	header(all, "Content-Encoding", "gzip"), header(all, "Content-Encoding", "br"), header(all, "Transfer-Encoding", "chunked"),
	reshape("gzip that was not asked for", ofBody, func(_ *exchange, a *http.Response, d []byte) []byte {
		a.Header.Set("Content-Encoding", "gzip")
		return zipped(d)
	}),
	header(only(get), "X-Goog-Generation", "17"), header(only(get), "X-Goog-Generation", ""), header(only(get), "X-Goog-Hash", "crc32c=AAAAAA=="), header(only(get), "X-Goog-Hash", ""),

	// Answers that are no answers.
	{name: "html-body", do: func(x *exchange) { x.plain(200, "text/html; charset=utf-8", html) }},
	{name: "html-body after the deed", do: func(x *exchange) { x.answer(); x.plain(200, "text/html; charset=utf-8", html) }},
	{name: "a page for people with 503", heals: all, do: func(x *exchange) { x.plain(503, "text/html", html) }},
	{name: "a page for people with 407", do: func(x *exchange) { x.plain(407, "text/html", html) }},
	{name: "JSON that is cut", on: not(files), do: func(x *exchange) { x.plain(200, "application/json", `[{"type":"file","oid":"`) }},
	{name: "null", on: not(files), do: func(x *exchange) { x.plain(200, "application/json", `null`) }},
	{name: "an empty object", on: not(files), do: func(x *exchange) { x.plain(200, "application/json", `{}`) }},
	{name: "an empty list", on: not(files), do: func(x *exchange) { x.plain(200, "application/json", `[]`) }},
	{name: "deep JSON", on: not(files), do: func(x *exchange) { x.plain(200, "application/json", strings.Repeat("[", 100_000)) }},
	{name: "nothing with 200", do: func(x *exchange) { io.Copy(io.Discard, x.r.Body); x.plain(200, "text/plain", "") }},
	{name: "nothing with 200 after the deed", do: func(x *exchange) { x.answer(); x.plain(200, "text/plain", "") }},

	// Redirects.
	redirect(301, "http://portal.test/login"), redirect(302, "http://portal.test/login"), redirect(303, "http://portal.test/login"), redirect(307, "http://portal.test/login"),
	redirect(308, "http://portal.test/login"), redirect(302, "https://portal.test/login"), redirect(302, ""), redirect(302, "/login"), redirect(302, "//portal.test/x"), redirect(302, "\x01"),
	{name: "redirect to itself", do: func(x *exchange) {
		io.Copy(io.Discard, x.r.Body)
		x.send(302, http.Header{"Location": {x.r.URL.RequestURI()}}, nil)
	}},
}

func redirect(code int, to string) fault {
	return fault{name: fmt.Sprintf("redirect-send-%d to %q", code, to), do: func(x *exchange) {
		io.Copy(io.Discard, x.r.Body)
		x.send(code, http.Header{"Location": {to}, "Content-Type": {"text/html"}}, []byte("moved"))
	}}
}
