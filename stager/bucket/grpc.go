package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const storageService = "/google.storage.v2.Storage/"

// writeBuffer is what goes to a connection at once, in bytes.
const writeBuffer = 256 << 10

// newGRPC returns a server of the reading half of the service's gRPC API (google.storage.v2.Storage):
// ReadObject, BidiReadObject, GetObject, ListObjects and GetBucket. It reads the same objects, and faults,
// denials and the request log are those of the other APIs.
func (s *Server) newGRPC() *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(s.serveCall),
		grpc.WriteBufferSize(writeBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
	)
}

// rawCodec passes messages as they are on the wire.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) { return v.(mem.BufferSlice), nil }

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// call is one call of a method.
type call struct {
	grpc.ServerStream
	server *Server
	method string
	header http.Header // the call's metadata
	log    *Request    // the line of the request log
	fault  *fault      // that it meets; nil for none
}

// grpcMethods is what is served, and under which name fault plans and the request log know it.
var grpcMethods = map[string]struct {
	op    string
	serve func(*call, message) error
}{
	"ReadObject":     {"storage.objects.get", (*call).readObject},
	"BidiReadObject": {"storage.objects.get", (*call).bidiReadObject},
	"GetObject":      {"storage.objects.get", (*call).getObject},
	"ListObjects":    {"storage.objects.list", (*call).listObjects},
	"GetBucket":      {"storage.buckets.get", (*call).getBucket},
}

// serveCall answers one call.
func (s *Server) serveCall(_ any, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	name := strings.TrimPrefix(full, storageService)
	method, ok := grpcMethods[name]
	if !ok {
		return grpcError(errUnsupported("the gRPC method " + clip(full)))
	}
	c := &call{ServerStream: stream, server: s, method: name, header: http.Header{}}
	md, _ := metadata.FromIncomingContext(stream.Context())
	for k, v := range md {
		c.header[http.CanonicalHeaderKey(k)] = v
	}
	c.log = &Request{Op: method.op, Method: name, Path: full}
	err := c.answer(method.serve)
	if errors.Is(err, errShort) {
		err = nil
	}
	c.note(err)
	return grpcError(err)
}

// answer reads the first message of a call and serves it.
func (c *call) answer(serve func(*call, message) error) error {
	first, err := c.receive()
	if err != nil {
		return err
	}
	// The service routes by this header and refuses a call without it.
	if c.header.Get("X-Goog-Request-Params") == "" {
		return errInvalid("An x-goog-request-params request metadata property must be provided for this request.")
	}
	return serve(c, first)
}

// begin takes note of what a call is about, and lets it meet its fault.
func (c *call) begin(bucket, object string, generation int64, span string) (route, error) {
	rt := route{op: c.log.Op, object: object}
	var ok bool
	if rt.bucket, ok = strings.CutPrefix(bucket, "projects/_/buckets/"); !ok {
		return rt, errInvalid("Invalid bucket name: '%s': want projects/_/buckets/BUCKET.", clip(bucket))
	}
	c.log.Bucket, c.log.Object, c.log.Range = rt.bucket, object, span
	if generation != 0 {
		c.log.Query = "generation=" + itoa(generation)
	}
	c.server.requests.add(c.log)
	if err := c.server.permit(rt); err != nil {
		return rt, err
	}
	c.header.Set("Range", span)
	r := &http.Request{Header: c.header}
	f, ok, err := c.server.faults.next(r, rt)
	if err != nil || !ok || f.ofHeader && f.after > 0 && behindStart(r) {
		return rt, err
	}
	c.fault = &f
	switch {
	case f.reset:
		return rt, &apiError{status: http.StatusServiceUnavailable, reason: "backendError", message: "Fault injected: connection reset"}
	case f.status > 0 && f.after < 0:
		return rt, f.answer()
	}
	return rt, nil
}

// note writes a call's end into the request log.
func (c *call) note(err error) {
	code := http.StatusOK
	if e, ok := errors.AsType[*apiError](err); ok {
		code = e.status
	} else if status.Code(err) == codes.OutOfRange {
		code = http.StatusRequestedRangeNotSatisfiable
	} else if err != nil {
		code = 0
	}
	c.server.requests.update(func() {
		if c.log.Status == 0 {
			c.log.Status = code
		}
	})
}

func (c *call) receive() (message, error) {
	var b []byte
	if err := c.RecvMsg(&b); err != nil {
		return nil, err
	}
	return parseMessage(b)
}

// reply sends one message that is no object's bytes.
func (c *call) reply(w wire) error {
	return c.SendMsg(mem.BufferSlice{mem.SliceBuffer(w)})
}

// grpcError returns err as the service says it.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return status.FromContextError(err).Err()
		}
		if s, ok := status.FromError(err); ok {
			return s.Err()
		}
		return status.Error(codes.Internal, err.Error())
	}
	return status.Error(grpcCode(e.status), e.message)
}

// grpcCode returns what stands for an HTTP status
// (https://cloud.google.com/storage/docs/json_api/v1/status-codes, and what Google's storage-testbench answers).
func grpcCode(httpStatus int) codes.Code {
	switch httpStatus {
	case http.StatusBadRequest:
		return codes.InvalidArgument
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.NotFound
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return codes.DeadlineExceeded
	case http.StatusConflict, http.StatusNotModified:
		return codes.Aborted
	case http.StatusPreconditionFailed, http.StatusGone:
		return codes.FailedPrecondition
	case http.StatusRequestedRangeNotSatisfiable:
		return codes.OutOfRange
	case http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case http.StatusNotImplemented:
		return codes.Unimplemented
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	case http.StatusInternalServerError, http.StatusBadGateway:
		return codes.Internal
	}
	return codes.Unknown
}

// outOfRange refuses one range of a BidiReadObject and says which.
func outOfRange(id int64, size int64) error {
	text := fmt.Sprintf("The requested range cannot be satisfied: the object has %d bytes.", size)
	of := wire(nil).number(1, id).message(2, wire(nil).number(1, int64(codes.OutOfRange)).text(2, text)) // ReadRangeError
	return status.FromProto(&spb.Status{
		Code: int32(codes.OutOfRange), Message: text,
		Details: []*anypb.Any{{TypeUrl: "type.googleapis.com/google.storage.v2.BidiReadObjectError", Value: wire(nil).message(1, of)}},
	}).Err()
}
