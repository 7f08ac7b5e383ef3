package gateway

import "net/http"

// traceParent returns the W3C trace context that the sender gave, or "" if
// there is none that is well-formed: what is passed on ends up in the logs of
// others.
func traceParent(h http.Header) string {
	values := h.Values("Traceparent")
	if len(values) != 1 {
		return ""
	}
	// 00-<32 hex>-<16 hex>-<2 hex>; a version above 00 may be longer, and ff is
	// forbidden. We pass on version 00 only.
	v := values[0]
	if len(v) != 55 || v[:3] != "00-" || v[35] != '-' || v[52] != '-' {
		return ""
	}
	trace, parent, flags := v[3:35], v[36:52], v[53:]
	if !isHex(trace) || !isHex(parent) || !isHex(flags) || isZero(trace) || isZero(parent) {
		return ""
	}
	return v
}

// isHex reports whether s is lower-case hexadecimal, as the standard wants it.
func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isZero(s string) bool {
	for _, c := range []byte(s) {
		if c != '0' {
			return false
		}
	}
	return true
}
