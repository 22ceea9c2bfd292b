package file

import (
	"io"
	"os"
)

// IsDirect reports whether a body is read past the page cache.
func IsDirect(body io.ReadCloser) bool { return body.(*object).direct != nil }

// CanDirect reports whether a file can be.
func CanDirect(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	align := int64(0)
	control(f, func(fd int) { align = alignment(fd) })
	return align > 0
}
