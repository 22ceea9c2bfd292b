package stager

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"github.com/headstart-serving/headstart/manifest"
)

// sums hashes a file in order, beside its transfer. Its state can be stored and taken up by another
// process, so that no byte is read twice for the sake of a hash.
type sums struct {
	sha256 hash.Hash
	git    hash.Hash // nil where the source gives a sha256
}

func newSums(f RemoteFile) *sums {
	s := &sums{sha256: sha256.New()}
	if f.SHA256 == nil {
		s.git = sha1.New()
		fmt.Fprintf(s.git, "blob %d\x00", f.Size)
	}
	return s
}

func (s *sums) Write(p []byte) (int, error) {
	s.sha256.Write(p)
	if s.git != nil {
		s.git.Write(p)
	}
	return len(p), nil
}

// state is the marshalled state of each hash behind its length.
func (s *sums) state() []byte {
	var b []byte
	for _, h := range s.hashes() {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			panic("stager: a hash that does not marshal: " + err.Error())
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(state)))
		b = append(b, state...)
	}
	return b
}

// restore takes up a state that the sums of the same file had.
func (s *sums) restore(state []byte) error {
	for _, h := range s.hashes() {
		if len(state) < 2 || len(state)-2 < int(binary.BigEndian.Uint16(state)) {
			return errors.New("the state of a hash is cut")
		}
		n := 2 + int(binary.BigEndian.Uint16(state))
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state[2:n]); err != nil {
			return fmt.Errorf("the state of a hash: %w", err)
		}
		state = state[n:]
	}
	if len(state) != 0 {
		return errors.New("the state of a hash is too long")
	}
	return nil
}

func (s *sums) hashes() []hash.Hash {
	if s.git == nil {
		return []hash.Hash{s.sha256}
	}
	return []hash.Hash{s.sha256, s.git}
}

func (s *sums) digest() manifest.Digest {
	return manifest.Digest(s.sha256.Sum(nil))
}

// check compares the sums of a whole file with what the source says of it.
func (s *sums) check(f RemoteFile) error {
	mismatch := &manifest.MismatchError{Path: f.Path, Size: f.Size}
	switch digest := s.digest(); {
	case f.SHA256 != nil && *f.SHA256 != digest:
		mismatch.Sum, mismatch.Want, mismatch.Got = "sha256", f.SHA256.String(), digest.String()
		return mismatch
	case f.SHA256 == nil:
		got := s.git.Sum(nil)
		if want, err := hex.DecodeString(f.GitSHA1); err != nil || !bytes.Equal(got, want) {
			mismatch.Sum, mismatch.Want, mismatch.Got = "git sha1", f.GitSHA1, hex.EncodeToString(got)
			return mismatch
		}
	}
	return nil
}
