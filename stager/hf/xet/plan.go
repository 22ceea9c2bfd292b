package xet

import (
	"cmp"
	"encoding/json"
	"net/url"
	"slices"
)

const (
	// window is how many bytes of a file are planned at once.
	window = 32 << 20
	// maxPlan bounds the answer for one window in bytes: 4096 terms of the smallest chunk that an uploader cuts,
	// each with a URL of 1.5 KB.
	maxPlan = 8 << 20
	// maxTerms bounds how many of them, and of their URLs, are compared with each other.
	maxTerms = 16 << 10
	// maxFetch bounds the bytes of a xorb, which has 64 MiB.
	maxFetch = 128 << 20
)

// span is a half-open range of chunks or bytes.
type span struct{ start, end int64 }

func (s span) len() int64 { return s.end - s.start }

// plan is how a range of a file is put together.
type plan struct {
	skip  int64 // bytes before the range, in the first term
	terms []term
}

// term is a run of chunks in one xorb.
type term struct {
	length int64 // bytes, unpacked
	chunks span
	from   *fetch
}

// fetch is a run of chunks that can be had at a URL, with exactly these bytes in the Range header.
type fetch struct {
	url    *url.URL
	chunks span
	bytes  span
}

// jsonSpan is a range as the store writes it.
type jsonSpan struct {
	Start *int64 `json:"start"`
	End   *int64 `json:"end"`
}

// document is the answer of either version.
type document struct {
	Skip  *int64 `json:"offset_into_first_range"`
	Terms []struct {
		Hash   string   `json:"hash"`
		Length *int64   `json:"unpacked_length"`
		Chunks jsonSpan `json:"range"`
	} `json:"terms"`
	Fetches map[string][]struct { // version 1
		Chunks jsonSpan `json:"range"`
		URL    string   `json:"url"`
		Bytes  jsonSpan `json:"url_range"`
	} `json:"fetch_info"`
	Xorbs map[string][]struct { // version 2
		URL    string `json:"url"`
		Ranges []struct {
			Chunks jsonSpan `json:"chunks"`
			Bytes  jsonSpan `json:"bytes"`
		} `json:"ranges"`
	} `json:"xorbs"`
}

// parsePlan reads how n bytes of a file are put together. What does not fit together is an error.
func parsePlan(data []byte, n int64) (plan, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return plan{}, malformed("the store's plan of the file is no JSON of a plan: %.80v", err)
	}
	if d.Skip == nil || len(d.Terms) == 0 || d.Fetches == nil && d.Xorbs == nil {
		return plan{}, malformed("the store's plan of the file lacks what every plan has")
	}
	fetches, err := d.fetches()
	if err != nil {
		return plan{}, err
	}
	p := plan{skip: *d.Skip}
	planned := -p.skip // bytes of the range
	if len(d.Terms) > maxTerms {
		return plan{}, malformed("the store's plan of %d bytes has %d terms", n, len(d.Terms))
	}
	for _, t := range d.Terms {
		if t.Length == nil || !t.Chunks.within(maxChunks) {
			return plan{}, malformed("the store's plan has a term without a length or a range of chunks")
		}
		one := term{length: *t.Length, chunks: span{*t.Chunks.Start, *t.Chunks.End}}
		if one.length < one.chunks.len() || one.length > one.chunks.len()*maxChunk {
			return plan{}, malformed("the store's plan has a term of %d chunks with %d bytes", one.chunks.len(), one.length)
		}
		if planned >= n {
			return plan{}, malformed("the store's plan has more terms than the %d bytes that were asked for need", n)
		}
		if one.from = find(fetches[t.Hash], one.chunks); one.from == nil {
			return plan{}, malformed("the store's plan has a term that it names no URL for")
		}
		planned += one.length
		p.terms = append(p.terms, one)
	}
	if p.skip < 0 || p.skip >= p.terms[0].length {
		return plan{}, malformed("the store's plan begins at byte %d of a term of %d", p.skip, p.terms[0].length)
	}
	if planned < n {
		return plan{}, malformed("the store's plan has %d bytes of the %d that were asked for", planned, n)
	}
	return p, nil
}

// fetches lists what can be fetched of each xorb, in the order of chunks.
func (d *document) fetches() (map[string][]*fetch, error) {
	all, count := make(map[string][]*fetch), 0
	add := func(hash, address string, chunks, bytes jsonSpan) error {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
			return malformed("the store's plan names a xorb that is not at a web address")
		}
		if !chunks.within(maxChunks) || bytes.Start == nil || bytes.End == nil || *bytes.Start < 0 || *bytes.End < *bytes.Start || *bytes.End >= maxFetch {
			return malformed("the store's plan has a URL without a range of chunks, or of bytes")
		}
		f := &fetch{url: u, chunks: span{*chunks.Start, *chunks.End}, bytes: span{*bytes.Start, *bytes.End + 1}}
		if least, most := f.chunks.len()*(headerSize+1), f.chunks.len()*(headerSize+maxPacked); f.bytes.len() < least || f.bytes.len() > most {
			return malformed("the store's plan has %d chunks in %d bytes", f.chunks.len(), f.bytes.len())
		}
		if count++; count > maxTerms {
			return malformed("the store's plan has more than %d URLs", maxTerms)
		}
		all[hash] = append(all[hash], f)
		return nil
	}
	for hash, list := range d.Fetches {
		for _, f := range list {
			if err := add(hash, f.URL, f.Chunks, f.Bytes); err != nil {
				return nil, err
			}
		}
	}
	for hash, list := range d.Xorbs {
		for _, x := range list {
			for _, f := range x.Ranges {
				if err := add(hash, x.URL, f.Chunks, f.Bytes); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, list := range all {
		if err := consistent(list); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// consistent sorts what can be fetched of a xorb and compares it: chunks that follow others have bytes that follow theirs.
func consistent(list []*fetch) error {
	slices.SortFunc(list, func(a, b *fetch) int {
		return cmp.Or(cmp.Compare(a.chunks.start, b.chunks.start), cmp.Compare(a.chunks.end, b.chunks.end))
	})
	for i := 1; i < len(list); i++ {
		a, b := list[i-1], list[i]
		apart := b.chunks.start >= a.chunks.end
		if apart && b.bytes.start < a.bytes.end || b.bytes.start < a.bytes.start {
			return malformed("the store's plan has ranges of a xorb that contradict each other")
		}
	}
	return nil
}

// find returns the first that has all the chunks.
func find(list []*fetch, chunks span) *fetch {
	i := slices.IndexFunc(list, func(f *fetch) bool { return f.chunks.start <= chunks.start && chunks.end <= f.chunks.end })
	if i < 0 {
		return nil
	}
	return list[i]
}

// within reports whether there is a range that is not empty and ends at most there.
func (s jsonSpan) within(most int64) bool {
	return s.Start != nil && s.End != nil && 0 <= *s.Start && *s.Start < *s.End && *s.End <= most
}
