package uplink

import (
	"context"
	"fmt"
	"net/http"
)

// Check tries the way to the gateway: connections, certificate and token, and
// whether the gateway takes them. For that it pushes nothing, which a gateway
// refuses once it knows who asks.
func (c *Client) Check(ctx context.Context) error {
	client, base, token, err := c.credentials(ctx, "")
	if err != nil {
		return err
	}
	push := request{method: http.MethodPost, url: at(base, "metrics/push"), token: token, body: []byte("{}")}
	if _, err := do(ctx, client, push, http.StatusBadRequest, http.StatusUnprocessableEntity); err != nil {
		return fmt.Errorf("ask the gateway: %w", err)
	}
	return nil
}
