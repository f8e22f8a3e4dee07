# Needs BuildKit, the default of `docker build` since Docker 23 (before: DOCKER_BUILDKIT=1).
#
#     docker build -t dockyard .
#
# ops/IMAGE.md explains releases for several platforms, the pinned versions and how to update them.

# Digests of the indexes of all platforms. Use --build-arg for another mirror or digest.
ARG GO_IMAGE=docker.io/library/golang:1.26.8-trixie@sha256:eae2aaa6add2936cbf350dd0d2628b363461542f0c4b3c0b558957e0f2997379
ARG PYTHON_IMAGE=docker.io/library/python:3.13.16-slim-trixie@sha256:3dd7cc108ec1493442514f5c2a871af6af0ec31d768ff6e378a93340c3b3db5f

# The credential helper for Amazon ECR. Go cross-compiles for the target platform: no emulation.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS ecr-login
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY ops/image/ecr-login/ ./
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -mod=readonly -trimpath -ldflags="-s -w" -o /out/ tool \
    && go version -m -json /out/docker-credential-ecr-login > /modules.json

# Dockyard and its dependencies in one virtual environment; the build tools are in another, which is not in the image.
FROM ${PYTHON_IMAGE} AS dockyard
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN mkdir /reports && python -m venv --without-pip /opt/build && python -m venv --without-pip /opt/dockyard
WORKDIR /src
COPY ops/image/build.txt ops/image/dockyard.txt ops/image/
RUN pip --python /opt/build/bin/python install --require-hashes --only-binary=:all: -r ops/image/build.txt
RUN pip --python /opt/dockyard/bin/python install --require-hashes --only-binary=:all: --no-compile \
        --report /reports/needed.json -r ops/image/dockyard.txt \
    && /opt/dockyard/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/dockyard/lib
COPY . .
RUN pip --python /opt/build/bin/python wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/dockyard/bin/python install --no-index --no-deps --no-compile \
        --report /reports/dockyard.json /wheels/*.whl \
    && /opt/dockyard/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/dockyard/lib/python*/site-packages/dockyard
COPY --from=ecr-login /modules.json /reports/
ARG PYTHON_IMAGE
RUN /opt/build/bin/python ops/image/sbom.py --base "$PYTHON_IMAGE" --go /reports/modules.json \
    /reports/needed.json /reports/dockyard.json > /opt/dockyard.cdx.json

FROM ${PYTHON_IMAGE}
RUN useradd --uid 65532 --create-home --home-dir /home/nonroot --shell /usr/sbin/nologin nonroot \
    && install -d -o nonroot -g nonroot /var/cache/dockyard
COPY --from=ecr-login /out/docker-credential-ecr-login /usr/local/bin/
COPY --from=dockyard /opt/dockyard /opt/dockyard
COPY --from=dockyard /opt/dockyard.cdx.json /usr/local/share/sbom/
ENV PATH=/opt/dockyard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache \
    AWS_ECR_CACHE_DIR=/var/cache/dockyard/ecr
# Numeric, so that Kubernetes can check runAsNonRoot. Credentials for registries: /home/nonroot/.docker/config.json.
USER 65532:65532
WORKDIR /home/nonroot
# The local store, including layers that are being downloaded. Use a separate disk.
VOLUME /var/cache/dockyard
EXPOSE 5000
# SIGTERM stops it within server.drain_timeout (25 s): use `docker stop --time 30`.
STOPSIGNAL SIGTERM
# Checks port 5000, or the port in SERVER_PORT or DOCKYARD_SERVER_PORT. With TLS, or with another port in the
# configuration file, use another check: --health-cmd.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request; \
port = os.environ.get('DOCKYARD_SERVER_PORT') or os.environ.get('SERVER_PORT') or '5000'; \
urllib.request.urlopen(f'http://127.0.0.1:{port}/healthz', timeout=4)"]
ENTRYPOINT ["dockyard"]
CMD ["server"]
# Last, so that a new commit alone does not change any layer.
ARG PYTHON_IMAGE VERSION REVISION
LABEL org.opencontainers.image.title="Dockyard" \
      org.opencontainers.image.description="A pull-through cache for OCI images" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.base.name=$PYTHON_IMAGE
