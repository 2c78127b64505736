package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/julofinance/grace/v3/internal/testing/http2test"
)

// A response is one answer, whole.
type response struct {
	status int
	header map[string]string // keys in lower case
	body   []byte
	close  bool // the connection ends with it
	pid    int
}

var errMalformed = errors.New("malformed answer")

// errUnanswered is the end of a connection before the first byte of an answer.
var errUnanswered = errors.New("closed without an answer")

// readResponse reads one answer, a 100 Continue as well.
func readResponse(r *bufio.Reader, method string) (*response, error) {
	if _, err := r.Peek(1); err == io.EOF {
		return nil, errUnanswered
	} else if err != nil {
		return nil, err
	}
	resp, err := readHead(r)
	if err != nil {
		return nil, noEOF(err)
	}
	h := resp.header
	switch length := h["content-length"]; {
	case method == "HEAD" || resp.status < 200 || resp.status == 204 || resp.status == 304:
	case strings.EqualFold(h["transfer-encoding"], "chunked"):
		resp.body, err = readChunks(r)
	case length != "":
		n, bad := strconv.Atoi(length)
		if bad != nil || n < 0 {
			return nil, fmt.Errorf("%w: length %q", errMalformed, length)
		}
		resp.body = make([]byte, n)
		_, err = io.ReadFull(r, resp.body)
	default:
		return nil, fmt.Errorf("%w: no length", errMalformed) // our handlers always have one
	}
	return resp, noEOF(err)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readHead(r *bufio.Reader) (*response, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	resp := &response{header: map[string]string{}}
	proto, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	resp.status, err = strconv.Atoi(code)
	if err != nil || proto != "HTTP/1.1" {
		return nil, fmt.Errorf("%w: %q", errMalformed, line)
	}
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if line == "" {
			break
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("%w: %q", errMalformed, line)
		}
		resp.header[strings.ToLower(key)] = strings.TrimSpace(value)
	}
	resp.close = strings.EqualFold(resp.header["connection"], "close")
	resp.pid, _ = strconv.Atoi(resp.header["x-pid"])
	return resp, nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", noEOF(err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func readChunks(r *bufio.Reader) (body []byte, err error) {
	for {
		line, err := readLine(r)
		if err != nil {
			return body, err
		}
		n, err := strconv.ParseUint(line, 16, 31)
		if err != nil {
			return body, fmt.Errorf("%w: chunk length %q", errMalformed, line)
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(r, chunk); err != nil {
			return body, noEOF(err)
		}
		if string(chunk[n:]) != "\r\n" {
			return body, fmt.Errorf("%w: chunk without an end", errMalformed)
		}
		if n == 0 {
			return body, nil // our handlers send no trailers
		}
		body = append(body, chunk[:n]...)
	}
}

// reason sorts an error into few words, for the count.
func reason(err error) string {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err):
		return "timeout"
	case errors.Is(err, errWrong):
		return "wrong answer"
	case errors.Is(err, errMalformed):
		return "malformed"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, http2test.ErrNotServed):
		return "not served"
	case errors.Is(err, errUnanswered):
		return "unanswered"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "cut"
	}
	return "other"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
