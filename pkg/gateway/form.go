package gateway

import (
	"io"
	"time"

	"github.com/google/uuid"

	"pganalytics/pkg/batch"
	"pganalytics/pkg/batch/jsonpush"
	"pganalytics/pkg/batch/native"
	"pganalytics/pkg/batch/push"
	"pganalytics/pkg/catalogue"
)

// form is one of the forms in which a batch comes. All obey the same rules and
// make the same batch.
type form struct {
	name   string // in metrics
	decode func(body io.Reader, collector uuid.UUID, cat *catalogue.Catalogue, lim push.Limits, now time.Time) (*batch.Batch, *push.Report, error)

	// keepsBody means that the batch's tuples are parts of the inflated body,
	// which is in memory as long as the batch is, refused items included.
	keepsBody bool
}

const jsonType = "application/json"

// formOf returns the form of a body of that content type.
func formOf(contentType string) form {
	if contentType == native.ContentType {
		return form{name: "native", decode: native.Decode, keepsBody: true}
	}
	return form{name: "json", decode: jsonpush.Decode}
}
