package protocol

import "fmt"

// codeTexts is the wire's error table both ways; the texts are part of the
// control API too, so they do not change.
var codeTexts = [...]string{
	CodeNone:            "none",
	CodeInternal:        "internal error",
	CodeVersion:         "no common protocol version",
	CodeUnknownVolume:   "volume not configured",
	CodeNotCreated:      "volume not created",
	CodeSize:            "sizes differ",
	CodeVolumeID:        "different volume of the same name",
	CodeUnrelated:       "data unrelated",
	CodeSplitBrain:      "split brain",
	CodeTwoPrimaries:    "two primaries",
	CodePrimaryIsTarget: "the primary's data is older",
	CodeDiskFailed:      "disk failed",
	CodeBusy:            "busy",
	CodeNotAllowed:      "not allowed",
	CodeTimeout:         "timeout",
	CodeShutdown:        "node is stopping",
	CodeOperator:        "operator request",
	CodeModeMismatch:    "protocols A, B, C differ",
	CodeCorrupt:         "data corrupted on the way",
	CodeProtocol:        "protocol violated",
	CodeRestart:         "compare again",
	CodeName:            "node has another name",
	CodeCertificate:     "certificate expired",
	CodeDuplicate:       "session replaced",
	CodeTransport:       "transports differ",
}

// String returns the code's text; a code of a later version prints as its
// number.
func (c Code) String() string {
	if int(c) < len(codeTexts) {
		return codeTexts[c]
	}
	return fmt.Sprintf("code(%d)", uint16(c))
}

// ParseCode is the inverse of String; false for a text that is no code's.
func ParseCode(s string) (Code, bool) {
	for c, t := range codeTexts {
		if t == s {
			return Code(c), true
		}
	}
	var n uint16
	if _, err := fmt.Sscanf(s, "code(%d)", &n); err == nil && Code(n).String() == s {
		return Code(n), true
	}
	return 0, false
}
