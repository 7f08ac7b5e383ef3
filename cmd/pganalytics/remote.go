package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"pganalytics/pkg/client"
)

// remote is the flags of every command that acts as a user who has logged in.
type remote struct {
	SessionFile string `type:"path" help:"File with the session of pganalytics login. Defaults to one in the user's configuration directory."`
	Output      string `default:"text" enum:"text,json" help:"text for people, json for scripts."`
}

// client resumes the session.
func (r *remote) client() (*client.Client, error) {
	file, err := sessionFile(r.SessionFile)
	if err != nil {
		return nil, err
	}
	return client.Resume(file)
}

func sessionFile(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	return client.SessionFile()
}

// call resumes the session and makes one call.
func (r *remote) call(con console, method, path string, in, out any) error {
	c, err := r.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(con.ctx, method, path, in, out)
}

// show prints v as JSON for scripts, else what text prints.
func (r *remote) show(con console, v any, text func(io.Writer) error) error {
	if r.Output == "json" {
		encoder := json.NewEncoder(con.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	return text(con.stdout)
}

// page is a page of any list.
type page[T any] struct {
	Data       []T `json:"data"`
	Total      int `json:"total"`
	Page       int `json:"page"`
	PageSize   int `json:"page_size"`
	TotalPages int `json:"total_pages"`
}

// paging is the flags of every list.
type paging struct {
	Page     int `default:"1" help:"Page to show, from 1."`
	PageSize int `default:"100" help:"Entries on a page, at most 200."`
}

// query returns path with the page and the filters that are not empty.
func (p paging) query(path string, filters map[string]string) string {
	q := url.Values{"page": {strconv.Itoa(p.Page)}, "page_size": {strconv.Itoa(p.PageSize)}}
	for name, value := range filters {
		if value != "" {
			q.Set(name, value)
		}
	}
	return path + "?" + q.Encode()
}

// table prints lines of cells under a heading, and how many pages there are if
// this is not the only one.
func table[T any](out io.Writer, heading string, p page[T], cells func(T) []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(heading, " ", "\t"))
	for _, v := range p.Data {
		fmt.Fprintln(w, strings.Join(cells(v), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if p.TotalPages > 1 {
		fmt.Fprintf(out, "page %d of %d, %d in all\n", p.Page, p.TotalPages, p.Total)
	}
	return nil
}

// when prints a time for people; nil is never.
func when(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// readSecret reads a password from the file, or asks for it at the terminal.
func readSecret(file, prompt string) (string, error) {
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		return strings.TrimRight(string(data), "\r\n"), nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errors.New("there is no terminal to ask for the password: give it in a file")
	}
	defer func() { _ = tty.Close() }()
	fmt.Fprint(tty, prompt)
	secret, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return string(secret), nil
}

// newSecret is readSecret for a password to be set; it asks twice.
func newSecret(file string) (string, error) {
	secret, err := readSecret(file, "New password: ")
	if err != nil || file != "" {
		return secret, err
	}
	again, err := readSecret("", "Once more: ")
	if err == nil && again != secret {
		err = errors.New("the two passwords differ")
	}
	return secret, err
}
