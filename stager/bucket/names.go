package bucket

import (
	"net/netip"
	"strings"
	"unicode/utf8"
)

// maxNameBytes is the longest object name in bytes (https://cloud.google.com/storage/docs/objects#naming).
const maxNameBytes = 1024

// checkBucketName refuses what is no name of a bucket
// (https://cloud.google.com/storage/docs/buckets#naming).
func checkBucketName(name string) error {
	bad := &apiError{status: 400, reason: "invalid", code: "InvalidBucketName", message: "Invalid bucket name: '" + clip(name) + "'", details: clip(name)}
	limit := 63
	if strings.Contains(name, ".") {
		limit = 222
	}
	if len(name) < 3 || len(name) > limit {
		return bad
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || len(part) > 63 || part[0] == '-' || part[len(part)-1] == '-' {
			return bad
		}
	}
	for _, c := range []byte(name) {
		if !alphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return bad
		}
	}
	if !alphanumeric(name[0]) || !alphanumeric(name[len(name)-1]) {
		return bad
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return bad
	}
	if strings.HasPrefix(name, "goog") || strings.Contains(name, "google") || strings.Contains(name, "g00gle") {
		return bad
	}
	return nil
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// checkObjectName refuses what is no name of an object.
func checkObjectName(name string) error {
	switch {
	case name == "":
		return errRequired("Required object name.")
	case len(name) > maxNameBytes:
		return &apiError{
			status: 400, reason: "invalid", code: "KeyTooLong",
			message: "The maximum object length is 1024 characters, but got a name with " + itoa(int64(len(name))) + " characters: ''" + clip(name) + "...''",
		}
	case !utf8.ValidString(name), strings.ContainsAny(name, "\r\n"), name == ".", name == "..",
		strings.HasPrefix(name, ".well-known/acme-challenge/"):
		return &apiError{status: 400, reason: "invalid", code: "InvalidObjectName", message: "Disallowed object name.", details: clip(name)}
	}
	return nil
}

// clip shortens a name of any length to what fits into a message.
func clip(name string) string {
	if len(name) > 128 {
		name = name[:128]
	}
	return strings.ToValidUTF8(name, "\uFFFD")
}
