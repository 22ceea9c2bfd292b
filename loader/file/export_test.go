package file

import (
	"io"
	"os"
)

// IsDirect reports whether aligned bytes of a body are read past the page cache.
func IsDirect(body io.ReadCloser) bool { return body.(*object).align > 0 }

// LastDirect reports whether the last read was.
func LastDirect(body io.ReadCloser) bool { return body.(*object).direct }

// CanDirect reports whether a file can be read so.
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
