package uplink

import "net/http"

// advice says, by the code of a problem, what people have to do. What is not
// here heals itself.
var advice = map[string]string{
	"collector_locked":       "the collector is locked: a superseded certificate of it was used, so its identity is in use twice. Find the other holder (a restored or copied host), then run `pganalytics collectors unlock NAME` and do here what it prints. The spool keeps everything.",
	"collector_disabled":     "an operator has disabled the collector. `pganalytics collectors enable NAME` lets it in again; the spool keeps everything.",
	"collector_unknown":      "the backend does not know this collector: it was deleted, or this is another installation. Enrol it again with a new token.",
	"certificate_revoked":    "the certificate is revoked: the collector was deleted, or unlocked and not yet enrolled again. Enrol it again with a new token.",
	"certificate_unknown":    "this installation has not issued the certificate, or no longer knows it. Enrol the collector again with a new token.",
	"certificate_expired":    "the certificate has expired. It is renewed by itself within 30 days; after that enrol the collector again with a new token.",
	"certificate_invalid":    "the certificate is not one of a collector of this installation. Enrol the collector again.",
	"certificate_required":   "something between collector and gateway ends TLS. Whatever stands there must pass the connection through (layer 4).",
	"collector_id_mismatch":  "the spool holds batches of another collector. Its batches can only be sent under their own identity.",
	"clock_skew":             "the clock of this host is ahead of the backend's. Set it right (NTP); the batches are then accepted as they are.",
	"quarantined":            "too many batches of this collector could not be stored. An operator must retry or discard some of its dead letters (`pganalytics deadletters list`).",
	"unsupported_media_type": "the gateway does not know the form of this collector's batches: it is older. Upgrade the gateway; the spool keeps everything.",
}

// advise returns what to do about an answer, or nothing.
func advise(status int, code string) string {
	switch {
	case code != "":
		return advice[code]
	case status == 0 || status >= http.StatusInternalServerError || status == http.StatusTooManyRequests:
		return ""
	}
	return "the answer is not the gateway's: something between collector and gateway answers in its place, as a proxy or a login page. Whatever stands there must pass the connection through, and take bodies of 8 MiB."
}

// Advice returns what people have to do about a problem of that code; nothing
// if it heals itself.
func Advice(code string) string { return advice[code] }
