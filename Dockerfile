# All programs in one image: which one runs is said by the command.

FROM --platform=$BUILDPLATFORM golang:1.26.8-trixie AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN mkdir /out && CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -o /out/ ./cmd/...

# Alpine for its wget, which the health checks use, and its sh, which enrols
# the collector of docker-compose.yml.
FROM alpine:3.24
# A volume that is mounted here for the first time takes over owner and mode:
# keys are refused in a directory that others may write to.
RUN adduser -D -H -u 65532 -s /sbin/nologin pganalytics \
 && install -d -m 0700 -o pganalytics -g pganalytics \
      /var/lib/pganalytics \
      /var/lib/pganalytics/pki \
      /var/lib/pganalytics/pki-public \
      /var/lib/pganalytics/collector
COPY --from=build /out/ /usr/local/bin/
USER 65532:65532
CMD ["pganalytics", "--help"]
