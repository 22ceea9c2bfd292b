package bucket

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

type xmlObject struct {
	Key            string
	Generation     string
	MetaGeneration string
	LastModified   string
	ETag           string
	Size           int64
	StorageClass   string
}

type xmlPrefix struct{ Prefix string }

// xmlList is the XML API's list of objects, of either version.
type xmlList struct {
	XMLName        xml.Name `xml:"http://doc.s3.amazonaws.com/2006-03-01 ListBucketResult"`
	Name           string
	Prefix         string
	Delimiter      string `xml:",omitempty"`
	Marker         string `xml:",omitempty"`
	NextMarker     string `xml:",omitempty"`
	KeyCount       int    `xml:",omitempty"`
	Continuation   string `xml:"ContinuationToken,omitempty"`
	Next           string `xml:"NextContinuationToken,omitempty"`
	MaxKeys        int
	IsTruncated    bool
	Contents       []xmlObject
	CommonPrefixes []xmlPrefix
}

// parseListXML reads the XML API's spelling: "marker", or "continuation-token" with list-type=2.
func parseListXML(v url.Values) (listQuery, error) {
	as := url.Values{"prefix": v["prefix"], "delimiter": v["delimiter"], "maxResults": v["max-keys"]}
	if v.Get("list-type") == "2" {
		as["pageToken"] = v["continuation-token"]
	}
	q, err := parseListQuery(as)
	if v.Get("list-type") == "2" {
		q.After = max(q.After, v.Get("start-after"))
	} else if m := v.Get("marker"); q.Delimiter != "" && strings.HasSuffix(m, q.Delimiter) {
		q.AfterPrefix = m
	} else {
		q.After = m
	}
	return q, err
}

// listObjectsXML answers GET /BUCKET.
func (s *Server) listObjectsXML(w http.ResponseWriter, r *http.Request, rt route) error {
	v := r.URL.Query()
	q, err := parseListXML(v)
	if err != nil {
		return err
	}
	page, err := s.listBucket(rt.bucket, q)
	if err != nil {
		return err
	}
	answer := xmlList{Name: rt.bucket, Prefix: q.Prefix, Delimiter: q.Delimiter, MaxKeys: q.Limit, IsTruncated: page.Next != ""}
	for _, o := range page.Objects {
		h := http.Header{}
		objectHeaders(h, o, apiXML)
		answer.Contents = append(answer.Contents, xmlObject{
			Key: o.Name, Generation: itoa(o.Generation), MetaGeneration: itoa(o.Metageneration), LastModified: formatTime(o.Updated),
			ETag: h.Get("ETag"), Size: o.Size, StorageClass: o.Attributes.StorageClass,
		})
	}
	for _, p := range page.Prefixes {
		answer.CommonPrefixes = append(answer.CommonPrefixes, xmlPrefix{p})
	}
	if v.Get("list-type") == "2" {
		answer.KeyCount = len(page.Objects) + len(page.Prefixes)
		answer.Continuation, answer.Next = v.Get("continuation-token"), page.Next
	} else if answer.Marker = v.Get("marker"); page.Next != "" {
		answer.NextMarker = page.last()
	}
	return writeXML(w, http.StatusOK, answer)
}

// last returns the name that a page ends with.
func (p *listPage) last() string {
	name := ""
	if n := len(p.Objects); n > 0 {
		name = p.Objects[n-1].Name
	}
	if n := len(p.Prefixes); n > 0 {
		name = max(name, p.Prefixes[n-1])
	}
	return name
}

// listBucketsXML answers GET /.
func (s *Server) listBucketsXML(w http.ResponseWriter, r *http.Request, rt route) error {
	type item struct {
		Name         string
		CreationDate string
	}
	var answer struct {
		XMLName xml.Name `xml:"http://doc.s3.amazonaws.com/2006-03-01 ListAllMyBucketsResult"`
		Buckets []item   `xml:"Buckets>Bucket"`
	}
	s.mu.RLock()
	for name, b := range s.buckets {
		answer.Buckets = append(answer.Buckets, item{name, formatTime(b.Created)})
	}
	s.mu.RUnlock()
	slices.SortFunc(answer.Buckets, func(a, b item) int { return strings.Compare(a.Name, b.Name) })
	return writeXML(w, http.StatusOK, answer)
}
