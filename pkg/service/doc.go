// Package service builds each service from its configuration. It is the only
// place that knows both sides of every boundary: it joins the small interfaces
// that gateway, ingester and authsvc declare with the stream and the store. It
// holds no rules of its own. Mains, `serve` and tests share it.
package service
