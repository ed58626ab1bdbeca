# Ringway in a container: built with Rust, run from an image that holds the C library, the binary and nothing else.
#
#   docker build -t ringway .
#   docker run --rm --network host --stop-timeout 45 -v /etc/ringway:/etc/ringway:ro ringway
#
# io_uring: Docker's default seccomp profile forbids it, and so do Podman's and containerd's. With `data_path = "auto"`
# Ringway sees that, says so in a line of its log, and takes epoll: nothing breaks. To allow io_uring, run with a profile
# that adds its three calls (deploy/README.md shows how to make one):
#
#   docker run --security-opt seccomp=ringway-seccomp.json --ulimit memlock=134217728 ...
#
# `docker run --rm --security-opt ... ringway probe` tells what the sandbox allows, and if not, why.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin ringway \
    && install -D -m 0755 target/release/ringway /out/ringway

# The same Debian as above, so the same C library. No shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/ringway /usr/bin/ringway
# By number, so that Kubernetes can prove it is not root (runAsNonRoot).
USER 65532:65532
# Clients, and the admin endpoint, as in config/ringway.toml. EXPOSE opens nothing, it documents.
EXPOSE 9000 9900
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/ringway"]
# Other commands are arguments: `docker run ringway probe`.
CMD ["run", "--config", "/etc/ringway/ringway.toml"]
