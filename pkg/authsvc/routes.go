package authsvc

import (
	"context"

	"github.com/go-chi/chi/v5"

	"pganalytics/pkg/httpserver"
	"pganalytics/pkg/httpserver/typed"
	"pganalytics/pkg/identity"
	"pganalytics/pkg/identity/access"
)

// describe makes the API that the typed routes are added to, each behind the
// table of package access.
func (s *Service) describe(r chi.Router) *typed.API {
	return typed.New("pganalytics authsvc", "v1", r, access.New(s.Verifier).Route)
}

// by returns who asks, for the audit.
func (s *Service) by(ctx context.Context) Act {
	return Act{Actor: identity.From(ctx).Actor(), At: s.cfg.Now().UTC(), Source: httpserver.Source(ctx)}
}

// PageQuery is the parameters of every list. It is exported for huma, which sees
// no other embedded fields.
type PageQuery struct {
	Number int `query:"page" minimum:"1" maximum:"1000000" default:"1"`
	Size   int `query:"page_size" minimum:"1" maximum:"200" default:"50"`
}

func (q PageQuery) page() Page { return Page(q) }

// list is the answer of every list.
type list[T any] struct {
	Data       []T `json:"data"`
	Total      int `json:"total"`
	Page       int `json:"page"`
	PageSize   int `json:"page_size"`
	TotalPages int `json:"total_pages"`
}

// body is an answer with a body.
type body[T any] struct{ Body T }

func answer[T any](v T) *body[T] { return &body[T]{v} }

// listed makes the answer of one page.
func listed[F, T any](found []F, total int, page Page, show func(F) T) *body[list[T]] {
	data := make([]T, len(found))
	for i, f := range found {
		data[i] = show(f)
	}
	return answer(list[T]{
		Data: data, Total: total, Page: page.Number, PageSize: page.Size, TotalPages: (total + page.Size - 1) / page.Size,
	})
}
