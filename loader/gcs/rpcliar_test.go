package gcs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// rpcLiar stands before a bucket and spoils its answers to BidiReadObject, as liar does over HTTP. The messages
// are read by the descriptors that the storage client brings.
type rpcLiar struct {
	bucket *grpc.ClientConn

	mu    sync.Mutex
	asked map[string]int                // reads, by repository
	lies  map[string]func(n int) rpcLie // n counts a repository's reads from 1; nil is none
}

// rpcLie answers in place of the right messages: one, for the chunks of these tests.
type rpcLie func(ctx context.Context, right *dynamicpb.Message, send func(proto.Message) error) error

const bidiRead = "/google.storage.v2.Storage/BidiReadObject"

func message(kind string) *dynamicpb.Message {
	m, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("google.storage.v2." + kind))
	if err != nil {
		panic(err)
	}
	return dynamicpb.NewMessage(m.Descriptor())
}

// at returns the message in a field, of a list the first.
func at(m protoreflect.Message, name string) protoreflect.Message {
	f := field(m, name)
	if f.IsList() {
		return m.Mutable(f).List().Get(0).Message()
	}
	return m.Mutable(f).Message()
}

func field(m protoreflect.Message, name string) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(protoreflect.Name(name))
}

func set(m protoreflect.Message, name string, v any) { m.Set(field(m, name), protoreflect.ValueOf(v)) }

func content(m protoreflect.Message) []byte {
	data := at(at(m, "object_data_ranges"), "checksummed_data")
	return data.Get(field(data, "content")).Bytes()
}

// filled sets a message's bytes, and whether they are the range's last.
func filled(m protoreflect.Message, b []byte, end bool) {
	part := at(m, "object_data_ranges")
	data := at(part, "checksummed_data")
	set(data, "content", b)
	data.Clear(field(data, "crc32c"))
	set(part, "range_end", end)
}

func (l *rpcLiar) serve(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if method != bidiRead {
		return status.Error(codes.Unimplemented, method)
	}
	request := message("BidiReadObjectRequest")
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	spec := at(request, "read_object_spec")
	repo := strings.Split(spec.Get(field(spec, "object")).String(), "/")[1]
	l.mu.Lock()
	l.asked[repo]++
	tell := l.lies[repo](l.asked[repo])
	l.mu.Unlock()
	right, err := l.right(stream.Context(), request)
	if err != nil {
		return err
	}
	if tell == nil {
		return stream.SendMsg(right)
	}
	return tell(stream.Context(), right, func(m proto.Message) error { return stream.SendMsg(m) })
}

// right asks the bucket.
func (l *rpcLiar) right(ctx context.Context, request proto.Message) (*dynamicpb.Message, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", "bucket=b")
	up, err := l.bucket.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, bidiRead)
	if err != nil {
		return nil, err
	}
	if err := up.SendMsg(request); err != nil {
		return nil, err
	}
	if err := up.CloseSend(); err != nil {
		return nil, err
	}
	right := message("BidiReadObjectResponse")
	if err := up.RecvMsg(right); err != nil {
		return nil, err
	}
	if err := up.RecvMsg(message("BidiReadObjectResponse")); err != io.EOF {
		return nil, fmt.Errorf("more than one message, or %v", err)
	}
	return right, nil
}

// spoilt changes the right message and sends it.
func spoilt(change func(m protoreflect.Message)) rpcLie {
	return func(_ context.Context, right *dynamicpb.Message, send func(proto.Message) error) error {
		change(right)
		return send(right)
	}
}

// changed changes the right bytes.
func changed(change func(b []byte) []byte) rpcLie {
	return spoilt(func(m protoreflect.Message) { filled(m, change(bytes.Clone(content(m))), true) })
}

// after sends so much of the right bytes, without the range's end, and then ends as then says.
func after(how func(n int) int, then func(ctx context.Context) error) rpcLie {
	return func(ctx context.Context, right *dynamicpb.Message, send func(proto.Message) error) error {
		b := content(right)
		filled(right, b[:how(len(b))], false)
		if err := send(right); err != nil {
			return err
		}
		return then(ctx)
	}
}

func stalls(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func answers(code codes.Code) func(context.Context) error {
	return func(context.Context) error {
		return status.Error(code, "told to\nby the test "+strings.Repeat("x", 5000))
	}
}

// nothing sends no message.
func nothing(then func(ctx context.Context) error) rpcLie {
	return func(ctx context.Context, _ *dynamicpb.Message, _ func(proto.Message) error) error { return then(ctx) }
}

func ends(context.Context) error { return nil }

// rpcLies has every way in which an answer over gRPC can be another one than the right one.
func rpcLies() map[string]rpcLie {
	all := map[string]rpcLie{
		"truncated":          after(half, ends),
		"truncated, says so": changed(func(b []byte) []byte { return b[:len(b)/2] }),
		"no bytes":           changed(func(b []byte) []byte { return nil }),
		"no message":         nothing(ends),
		"longer":             changed(func(b []byte) []byte { return append(b, "more"...) }),
		"first byte":         changed(func(b []byte) []byte { b[0] ^= 1; return b }),
		"last byte":          changed(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"all zero":           changed(func(b []byte) []byte { clear(b); return b }),
		"wrong checksum": spoilt(func(m protoreflect.Message) {
			set(at(at(m, "object_data_ranges"), "checksummed_data"), "crc32c", uint32(1))
		}),
		"stalled":               nothing(stalls),
		"stalled in the middle": after(half, stalls),
		"another generation":    spoilt(func(m protoreflect.Message) { set(at(m, "metadata"), "generation", int64(123456)) }),
		"no metadata":           spoilt(func(m protoreflect.Message) { m.Clear(field(m, "metadata")) }),
		"another size":          spoilt(func(m protoreflect.Message) { set(at(m, "metadata"), "size", int64(1)) }),
		"a negative size":       spoilt(func(m protoreflect.Message) { set(at(m, "metadata"), "size", int64(-1)) }),
		"another range's bytes": spoilt(func(m protoreflect.Message) { set(at(at(m, "object_data_ranges"), "read_range"), "read_id", int64(99)) }),
		"too much in a message": changed(func([]byte) []byte { return make([]byte, 17<<20) }),
		"no end of the range":   spoilt(func(m protoreflect.Message) { set(at(m, "object_data_ranges"), "range_end", false) }),
		"garbage": func(_ context.Context, right *dynamicpb.Message, send func(proto.Message) error) error {
			m := message("BidiReadObjectResponse")
			m.SetUnknown(protoreflect.RawFields{0x32, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3}) // a field that ends behind the message
			return send(m)
		},
		"a message before, without anything": func(_ context.Context, right *dynamicpb.Message, send func(proto.Message) error) error {
			first := message("BidiReadObjectResponse")
			set(first, "metadata", at(right, "metadata"))
			if err := send(first); err != nil {
				return err
			}
			right.Clear(field(right, "metadata"))
			return send(right)
		},
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		all[code.String()] = nothing(answers(code))
	}
	for _, code := range []codes.Code{codes.Unavailable, codes.PermissionDenied, codes.Internal, codes.ResourceExhausted} {
		all[code.String()+" in the middle"] = after(half, answers(code))
	}
	return all
}

// TestFaultTable, over gRPC.
func TestFaultTableGRPC(t *testing.T) {
	lies := rpcLies()
	rows, models := table(t, slices.Sorted(maps.Keys(lies)))
	w := newWorld(t, models)
	liar := &rpcLiar{asked: map[string]int{}, lies: map[string]func(int) rpcLie{}}
	for i, r := range rows {
		liar.lies[fmt.Sprintf("table-%d", i)] = func(n int) rpcLie {
			if n < r.from || r.once && n > r.from {
				return nil
			}
			return lies[r.lie]
		}
	}
	liar.start(t, strings.TrimPrefix(w.url, "http://"))
	w.grpc = open(t, "grpc", name, "")
	w.judge(t, rows, models, verdicts{
		final: map[string]bool{
			"InvalidArgument": true, "NotFound": true, "AlreadyExists": true, "PermissionDenied": true, "PermissionDenied in the middle": true,
			"FailedPrecondition": true, "Unimplemented": true, "Unauthenticated": true,
		},
		harmless: map[string]bool{
			"longer": true, "no metadata": true, "another size": true, "a negative size": true, "wrong checksum": true, "a message before, without anything": true, "no end of the range": true,
		},
		either: map[string]bool{"another generation": true},
		wrong:  map[string]bool{"first byte": true, "last byte": true, "all zero": true, "OutOfRange": true},
	})
}

// start lets the liar serve before the bucket at addr, and points the Go client at it.
func (l *rpcLiar) start(t *testing.T, addr string) {
	t.Helper()
	var err error
	if l.bucket, err = grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(l.serve))
	done := make(chan error)
	go func() { done <- s.Serve(listener) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		l.bucket.Close()
	})
	t.Setenv("STORAGE_EMULATOR_HOST_GRPC", listener.Addr().String())
}
