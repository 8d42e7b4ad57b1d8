package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/qrbd/qrbd/protocol"
	"github.com/qrbd/qrbd/volume"
)

// bodyOf turns an error into what the wire carries. An error without a code is
// CodeInternal, or CodeTimeout when a deadline passed.
func bodyOf(err error) *ErrorBody {
	var ve *volume.Error
	code := protocol.CodeInternal
	switch {
	case errors.As(err, &ve):
		code = ve.Code
	case errors.Is(err, context.DeadlineExceeded):
		code = protocol.CodeTimeout
	case errors.Is(err, context.Canceled):
		code = protocol.CodeShutdown
	}
	return &ErrorBody{Code: code.String(), Text: err.Error()}
}

// asError is the inverse of bodyOf.
func (b *ErrorBody) asError() error {
	code, ok := protocol.ParseCode(b.Code)
	if !ok {
		code = protocol.CodeInternal
	}
	return &volume.Error{Code: code, Text: b.Text}
}

// statusOf is the HTTP status that goes with a code; the code itself is in the
// body.
func statusOf(code protocol.Code) int {
	switch code {
	case protocol.CodeUnknownVolume, protocol.CodeNotCreated:
		return http.StatusNotFound
	case protocol.CodeInternal, protocol.CodeDiskFailed, protocol.CodeCorrupt, protocol.CodeNone:
		return http.StatusInternalServerError
	case protocol.CodeTimeout:
		return http.StatusGatewayTimeout
	case protocol.CodeShutdown:
		return http.StatusServiceUnavailable
	case protocol.CodeVersion, protocol.CodeSize, protocol.CodeVolumeID, protocol.CodeUnrelated,
		protocol.CodeSplitBrain, protocol.CodeTwoPrimaries, protocol.CodePrimaryIsTarget, protocol.CodeBusy,
		protocol.CodeNotAllowed, protocol.CodeOperator, protocol.CodeModeMismatch, protocol.CodeProtocol:
		return http.StatusConflict
	}
	return http.StatusConflict // a code of a later version
}

func writeError(w http.ResponseWriter, err error) {
	b := bodyOf(err)
	code, _ := protocol.ParseCode(b.Code)
	writeJSON(w, statusOf(code), struct {
		Error *ErrorBody `json:"error"`
	}{b})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that went away is no concern of the agent's.
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(code protocol.Code, format string, args ...any) error {
	return &volume.Error{Code: code, Text: fmt.Sprintf(format, args...)}
}
