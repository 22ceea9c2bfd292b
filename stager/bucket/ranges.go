package bucket

import (
	"strconv"
	"strings"
)

// parseRange returns the bytes [start, start+length) that a Range header asks of an object.
// whole means that the header asks for nothing that the service understands (another unit,
// several ranges, a malformed one), which it answers with the whole object. A range that the
// object does not have is an error.
func parseRange(header string, size int64) (start, length int64, whole bool, err error) {
	spec, ok := strings.CutPrefix(strings.TrimSpace(header), "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, size, true, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, size, true, nil
	}
	if first == "" {
		n, ok := parseOffset(last)
		if !ok {
			return 0, size, true, nil
		}
		if n == 0 || size == 0 {
			return 0, 0, false, errRange(size)
		}
		n = min(n, size)
		return size - n, n, false, nil
	}
	start, ok = parseOffset(first)
	if !ok {
		return 0, size, true, nil
	}
	end := size
	if last != "" {
		n, ok := parseOffset(last)
		if !ok || n < start {
			return 0, size, true, nil
		}
		end = min(n, size-1) + 1
	}
	if start >= size {
		return 0, 0, false, errRange(size)
	}
	return start, end - start, false, nil
}

// parseOffset reads digits; a number beyond any object is the largest one.
func parseOffset(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}
