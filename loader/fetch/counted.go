package fetch

import (
	"context"
	"io"
)

// counted is a source that counts the bytes of one attempt.
type counted struct {
	Source
	n *int64
}

// Open implements [Source].
func (s counted) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	body, err := s.Source.Open(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	return countedBody{body, s.n}, nil
}

type countedBody struct {
	io.ReadCloser
	n *int64
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	*b.n += int64(n)
	return n, err
}
