package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"cloud.google.com/go/storage"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	rpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/headstart-serving/headstart/stager/bucket"
)

// never is a client that does not try again.
var never = []storage.RetryOption{storage.WithPolicy(storage.RetryNever), storage.WithErrorFunc(func(error) bool { return false })}

// overGRPC returns the same bucket in the eyes of the Go client's gRPC half.
func (h *host) overGRPC(t testing.TB, bidi bool) *storage.BucketHandle {
	t.Helper()
	t.Setenv("STORAGE_EMULATOR_HOST_GRPC", h.URL)
	var options []option.ClientOption
	if bidi {
		options = append(options, storage.WithGRPCBidiReads())
	}
	c, err := storage.NewGRPCClient(context.Background(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.Bucket(name)
}

// eachRead runs a test over ReadObject and over BidiReadObject.
func eachRead(t *testing.T, f func(t *testing.T, bidi bool)) {
	for what, bidi := range map[string]bool{"ReadObject": false, "BidiReadObject": true} {
		t.Run(what, func(t *testing.T) { f(t, bidi) })
	}
}

const large = 2<<20 + 1<<19 + 3 // bytes: more than one message, no round number

func TestGRPCRanges(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(large)
	put(t, h.object("a b/ü?#"), data)
	put(t, h.object("empty"), nil)
	eachRead(t, func(t *testing.T, bidi bool) {
		b := h.overGRPC(t, bidi)
		for _, r := range [][2]int64{
			{0, -1}, {0, 1}, {0, large}, {0, large + 1}, {1, -1}, {1, large}, {2 << 20, 1}, {2<<20 - 1, 2}, {large - 1, 1}, {large - 1, 9}, {large, 1}, {-1, -1}, {-large, -1}, {-large - 9, -1}, {7, 0},
		} {
			rd, err := b.Object("a b/ü?#").NewRangeReader(t.Context(), r[0], r[1])
			if err != nil {
				t.Errorf("%v: %v", r, err)
				continue
			}
			got, err := io.ReadAll(rd)
			from := r[0]
			if from < 0 {
				from = max(large+from, 0)
			}
			want := data[from:]
			if r[1] >= 0 {
				want = want[:min(r[1], int64(len(want)))]
			}
			if err != nil || !bytes.Equal(got, want) || rd.Attrs.Size != large || rd.Attrs.Generation == 0 {
				t.Errorf("%v: %d bytes, %v, %+v", r, len(got), err, rd.Attrs)
			}
			rd.Close()
		}
		if _, err := b.Object("a b/ü?#").NewRangeReader(t.Context(), large+1, 1); rpcstatus.Code(err) != codes.OutOfRange {
			t.Errorf("behind the end: %v", err)
		}
		rd, err := b.Object("empty").NewReader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(rd); err != nil || len(got) > 0 {
			t.Errorf("empty: %d bytes, %v", len(got), err)
		}
		rd.Close()
	})
}

// What does not exist, or not as the caller wants it, is refused with the service's code.
func TestGRPCRefusals(t *testing.T) {
	h := start(t, t.TempDir())
	first := put(t, h.object("a"), []byte("old"))
	second := put(t, h.object("a"), []byte("new"))
	eachRead(t, func(t *testing.T, bidi bool) {
		b := h.overGRPC(t, bidi)
		read := func(o *storage.ObjectHandle) error {
			rd, err := o.Retryer(never...).NewReader(t.Context())
			if err != nil {
				return err
			}
			defer rd.Close()
			_, err = io.Copy(io.Discard, rd)
			return err
		}
		for what, test := range map[string]struct {
			o    *storage.ObjectHandle
			want codes.Code
		}{
			"right":            {b.Object("a").Generation(second.Generation).If(storage.Conditions{GenerationMatch: second.Generation}), codes.OK},
			"old generation":   {b.Object("a").Generation(first.Generation), codes.NotFound},
			"missing":          {b.Object("none"), codes.NotFound},
			"generation match": {b.Object("a").If(storage.Conditions{GenerationMatch: first.Generation}), codes.FailedPrecondition},
			"generation other": {b.Object("a").If(storage.Conditions{GenerationNotMatch: first.Generation}), codes.OK},
			"generation not":   {b.Object("a").If(storage.Conditions{GenerationNotMatch: second.Generation}), codes.Aborted},
			"metageneration":   {b.Object("a").If(storage.Conditions{MetagenerationMatch: 7}), codes.FailedPrecondition},
		} {
			err := read(test.o)
			if rpcstatus.Code(err) != test.want || (test.want == codes.NotFound) != errors.Is(err, storage.ErrObjectNotExist) {
				t.Errorf("%s: %v, want %v", what, err, test.want)
			}
			if _, err := test.o.Retryer(never...).Attrs(t.Context()); rpcstatus.Code(err) != test.want {
				t.Errorf("%s: attributes: %v, want %v", what, err, test.want)
			}
		}
	})
	h.Deny("storage.objects.get")
	if _, err := h.overGRPC(t, true).Object("a").Retryer(never...).NewReader(t.Context()); rpcstatus.Code(err) != codes.PermissionDenied {
		t.Errorf("denied: %v", err)
	}
	h.Deny()
	if err := h.overGRPC(t, true).Object("a").Retryer(never...).Delete(t.Context()); rpcstatus.Code(err) != codes.Unimplemented {
		t.Errorf("a method that is not there: %v", err)
	}
}

// Both clients see the same of an object.
func TestGRPCAttributes(t *testing.T) {
	h := start(t, t.TempDir())
	w := h.object("a").NewWriter(t.Context())
	w.ContentType, w.ContentLanguage, w.CacheControl, w.ContentDisposition = "text/x", "de", "no-cache", "inline"
	w.Metadata = map[string]string{"k": "v", "empty": ""}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	web, err := h.object("a").Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := h.overGRPC(t, false)
	rpc, err := b.Object("a").Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := func(a *storage.ObjectAttrs) string {
		return fmt.Sprint(a.Bucket, a.Name, a.ContentType, a.ContentLanguage, a.CacheControl, a.ContentDisposition, a.Size, a.MD5, a.CRC32C, a.Metadata,
			a.Generation, a.Metageneration, a.StorageClass, a.Created.UnixMilli(), a.Updated.UnixMilli(), a.Finalized.UnixMilli(), a.TemporaryHold)
	}
	if seen(web) != seen(rpc) {
		t.Errorf("%s\n%s", seen(web), seen(rpc))
	}
	webBucket, err := h.client.Bucket(name).Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rpcBucket, err := b.Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of := func(a *storage.BucketAttrs) string {
		return fmt.Sprint(a.Name, a.Location, a.LocationType, a.StorageClass, a.MetaGeneration, a.Created.UnixMilli(), a.VersioningEnabled, a.UniformBucketLevelAccess.Enabled)
	}
	if of(webBucket) != of(rpcBucket) {
		t.Errorf("%s\n%s", of(webBucket), of(rpcBucket))
	}
}

// Both clients list the same, in pages, with folders.
func TestGRPCList(t *testing.T) {
	h := start(t, t.TempDir())
	for i := range 7 {
		put(t, h.object(fmt.Sprintf("a/%d", i)), nil)
		put(t, h.object(fmt.Sprintf("b-%d/x", i)), nil)
	}
	b := h.overGRPC(t, false)
	list := func(b *storage.BucketHandle, q *storage.Query, page int) (names []string) {
		it := b.Objects(t.Context(), q)
		it.PageInfo().MaxSize = page
		for {
			a, err := it.Next()
			if err == iterator.Done {
				return names
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, a.Prefix+a.Name)
		}
	}
	for _, q := range []storage.Query{{}, {Prefix: "a/"}, {Delimiter: "/"}, {Prefix: "none"}, {StartOffset: "a/3", EndOffset: "b-2"}, {Prefix: "b-", Delimiter: "/"}} {
		for _, page := range []int{0, 1, 3} {
			if web, rpc := list(h.client.Bucket(name), &q, page), list(b, &q, page); !slices.Equal(web, rpc) {
				t.Errorf("%+v, pages of %d: %q, over gRPC %q", q, page, web, rpc)
			}
		}
	}
	if _, err := h.overGRPC(t, false).Objects(t.Context(), &storage.Query{MatchGlob: "*"}).Next(); rpcstatus.Code(err) != codes.Unimplemented {
		t.Errorf("%v", err)
	}
}

// One stream brings many ranges of one generation, whatever becomes of the name meanwhile.
func TestGRPCMultiRange(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(large)
	put(t, h.object("a"), data)
	h.ResetRequests()
	m, err := h.overGRPC(t, true).Object("a").NewMultiRangeDownloader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.Attrs.Size != large {
		t.Errorf("%+v", m.Attrs)
	}
	put(t, h.object("a"), []byte("other"))
	var mu sync.Mutex
	ended := 0
	got := make([]bytes.Buffer, 40)
	for i := range got {
		m.Add(&got[i], int64(i*1000), large/2, func(_, n int64, err error) {
			mu.Lock()
			defer mu.Unlock()
			ended++
			if err != nil || n != large/2 {
				t.Errorf("range %d: %d bytes, %v", i, n, err)
			}
		})
	}
	m.Wait()
	for i := range got {
		if !bytes.Equal(got[i].Bytes(), data[i*1000:i*1000+large/2]) {
			t.Errorf("range %d: %d bytes, not the object's", i, got[i].Len())
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if ended != len(got) {
		t.Errorf("%d ranges ended", ended)
	}
	calls := 0
	for _, q := range h.Requests() {
		if q.Method == "BidiReadObject" {
			calls++
		}
	}
	if calls != 1 {
		t.Errorf("%d streams", calls)
	}
}

// Faults come over gRPC as the service would say them, and where they are bytes, the client finds them.
func TestGRPCFaults(t *testing.T) {
	h := start(t, t.TempDir())
	data := pattern(large)
	put(t, h.object("a"), data)
	eachRead(t, func(t *testing.T, bidi bool) {
		o := h.overGRPC(t, bidi).Object("a").Retryer(never...)
		for _, test := range []struct {
			fault string
			code  codes.Code // OK: none
			text  string     // of an error that is the client's own
			bytes int
		}{
			{"return-401", codes.Unauthenticated, "", 0},
			{"return-429", codes.ResourceExhausted, "", 0},
			{"return-503", codes.Unavailable, "", 0},
			{"return-reset-connection", codes.Unavailable, "", 0},
			{"return-broken-stream", codes.Unavailable, "", 4},
			{"return-broken-stream-after-2560K", codes.Unavailable, "", 2560 << 10},
			{"return-503-after-100K", codes.Unavailable, "", 100 << 10},
			{"return-short-stream", codes.OK, "", 4},
			{"return-corrupted-data", codes.Unknown, "storage: bad CRC on chunk read", -1},
			{"return-corrupted-data-with-its-crc32c", codes.OK, "", large - 1},
			{"stall-for-1s-after-3K", codes.OK, "", large - 1},
			{"", codes.OK, "", large - 1},
		} {
			if err := h.Plan("storage.objects.get", test.fault); err != nil {
				t.Fatal(err)
			}
			var got []byte
			rd, err := o.NewRangeReader(t.Context(), 1, -1)
			if err == nil {
				got, err = io.ReadAll(rd)
				rd.Close()
			}
			if code := rpcstatus.Code(err); code != test.code || test.bytes >= 0 && len(got) != test.bytes || test.text != "" && !bytes.Contains([]byte(err.Error()), []byte(test.text)) {
				t.Errorf("%q: %d bytes, %v", test.fault, len(got), err)
			}
			if right := bytes.Equal(got, data[1:1+len(got)]); right != (test.fault != "return-corrupted-data-with-its-crc32c") && test.bytes > 0 {
				t.Errorf("%q: right bytes %v", test.fault, right)
			}
		}
	})
}

// Closing the server ends calls that stall.
func TestGRPCClose(t *testing.T) {
	h := start(t, t.TempDir())
	put(t, h.object("a"), pattern(large))
	if err := h.Plan("storage.objects.get", "stall-at-256KiB"); err != nil {
		t.Fatal(err)
	}
	rd, err := h.overGRPC(t, true).Object("a").Retryer(never...).NewReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if _, err := io.CopyN(io.Discard, rd, 256<<10); err != nil {
		t.Fatal(err)
	}
	if err := h.Server.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := rd.Read(make([]byte, 1)); n != 0 || rpcstatus.Code(err) != codes.Unavailable {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// raw is a connection without any client, whose messages are those of the descriptors that the Go client brings.
type raw struct{ *grpc.ClientConn }

func (h *host) raw(t *testing.T) raw {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+h.URL[len("http://"):], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return raw{c}
}

func newMessage(t *testing.T, kind string) *dynamicpb.Message {
	t.Helper()
	m, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("google.storage.v2." + kind))
	if err != nil {
		t.Fatal(err)
	}
	return dynamicpb.NewMessage(m.Descriptor())
}

func set(m *dynamicpb.Message, field string, v any) {
	m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(field)), protoreflect.ValueOf(v))
}

func list(m *dynamicpb.Message, field string) protoreflect.List {
	return m.Mutable(m.Descriptor().Fields().ByName(protoreflect.Name(field))).List()
}

// Requests that no client would send are refused, and none is taken for another.
func TestGRPCNonsense(t *testing.T) {
	h := start(t, t.TempDir())
	put(t, h.object("a"), pattern(100))
	c := h.raw(t)
	routed := metadata.AppendToOutgoingContext(t.Context(), "x-goog-request-params", "bucket=b")
	spec := func(change func(*dynamicpb.Message)) *dynamicpb.Message {
		m := newMessage(t, "BidiReadObjectSpec")
		set(m, "bucket", "projects/_/buckets/"+name)
		set(m, "object", "a")
		if change != nil {
			change(m)
		}
		return m
	}
	request := func(spec *dynamicpb.Message, ranges ...[3]int64) *dynamicpb.Message {
		m := newMessage(t, "BidiReadObjectRequest")
		if spec != nil {
			m.Set(m.Descriptor().Fields().ByName("read_object_spec"), protoreflect.ValueOfMessage(spec))
		}
		for _, r := range ranges {
			part := newMessage(t, "ReadRange")
			set(part, "read_offset", r[0])
			set(part, "read_length", r[1])
			set(part, "read_id", r[2])
			list(m, "read_ranges").Append(protoreflect.ValueOfMessage(part))
		}
		return m
	}
	many := make([][3]int64, 101)
	key := func(m *dynamicpb.Message) {
		params := newMessage(t, "CommonObjectRequestParams")
		set(params, "encryption_algorithm", "AES256")
		m.Set(m.Descriptor().Fields().ByName("common_object_request_params"), protoreflect.ValueOfMessage(params))
	}
	for what, test := range map[string]struct {
		ctx  context.Context
		send []proto.Message
		want codes.Code
	}{
		"right":           {routed, []proto.Message{request(spec(nil), [3]int64{0, 0, 1}), request(nil, [3]int64{5, 5, 2}, [3]int64{-3, 2, 3})}, codes.OK},
		"no route":        {t.Context(), []proto.Message{request(spec(nil))}, codes.InvalidArgument},
		"no spec":         {routed, []proto.Message{request(nil, [3]int64{0, 0, 1})}, codes.InvalidArgument},
		"two specs":       {routed, []proto.Message{request(spec(nil)), request(spec(nil))}, codes.InvalidArgument},
		"no bucket":       {routed, []proto.Message{request(spec(func(m *dynamicpb.Message) { set(m, "bucket", name) }))}, codes.InvalidArgument},
		"other bucket":    {routed, []proto.Message{request(spec(func(m *dynamicpb.Message) { set(m, "bucket", "projects/_/buckets/none") }))}, codes.NotFound},
		"negative length": {routed, []proto.Message{request(spec(nil), [3]int64{0, -1, 1})}, codes.OutOfRange},
		"behind the end":  {routed, []proto.Message{request(spec(nil), [3]int64{101, 1, 1})}, codes.OutOfRange},
		"at the end":      {routed, []proto.Message{request(spec(nil), [3]int64{100, 1, 1})}, codes.OK},
		"too many ranges": {routed, []proto.Message{request(spec(nil), many...)}, codes.InvalidArgument},
		"a key":           {routed, []proto.Message{request(spec(key))}, codes.Unimplemented},
		"bad generation":  {routed, []proto.Message{request(spec(func(m *dynamicpb.Message) { set(m, "generation", int64(-5)) }))}, codes.InvalidArgument},
	} {
		stream, err := c.NewStream(test.ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/google.storage.v2.Storage/BidiReadObject")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range test.send {
			if err := stream.SendMsg(m); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = stream.RecvMsg(newMessage(t, "BidiReadObjectResponse"))
		}
		if err == io.EOF {
			err = nil
		}
		if rpcstatus.Code(err) != test.want {
			t.Errorf("%s: %v, want %v", what, err, test.want)
		}
		if test.want == codes.OutOfRange && len(rpcstatus.Convert(err).Details()) != 1 {
			t.Errorf("%s: no word of which range: %v", what, rpcstatus.Convert(err).Proto())
		}
	}
	if err := c.Invoke(routed, "/google.storage.v2.Storage/RewriteObject", newMessage(t, "GetObjectRequest"), newMessage(t, "Object")); rpcstatus.Code(err) != codes.Unimplemented {
		t.Errorf("%v", err)
	}
}

// A shaped server serves gRPC too, at its rate.
func TestGRPCShaped(t *testing.T) {
	s, err := bucket.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket(name); err != nil {
		t.Fatal(err)
	}
	h := serveAs(t, s, bucket.Shape{Total: 100 << 20}.Handler(s))
	data := pattern(large)
	put(t, h.object("a"), data)
	rd, err := h.overGRPC(t, true).Object("a").NewReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if got, err := io.ReadAll(rd); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
