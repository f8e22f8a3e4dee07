# docker build -t dockyard .
# docker buildx build --platform linux/amd64,linux/arm64 -t dockyard .

# The helper that logs in to Amazon ECR. Go builds for the other platform by itself: no emulation here.
FROM --platform=$BUILDPLATFORM golang:1.26-trixie AS ecr-login
ARG TARGETOS TARGETARCH
ARG ECR_LOGIN_VERSION=v0.12.0
ARG ECR_LOGIN=github.com/awslabs/amazon-ecr-credential-helper/ecr-login/cli/docker-credential-ecr-login
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go install -trimpath -ldflags="-s -w" $ECR_LOGIN@$ECR_LOGIN_VERSION \
    && find /go/bin -name docker-credential-ecr-login -exec install -D {} /out/docker-credential-ecr-login ';'

# Dockyard and what it needs, in an environment of its own.
FROM python:3.13-slim-trixie AS dockyard
RUN python -m venv --without-pip /opt/dockyard
WORKDIR /src
COPY . .
RUN pip --python /opt/dockyard/bin/python install --no-cache-dir --no-compile . \
    && /opt/dockyard/bin/python -m compileall -q /opt/dockyard/lib

FROM python:3.13-slim-trixie
RUN useradd --uid 65532 --create-home --home-dir /home/nonroot --shell /usr/sbin/nologin nonroot \
    && install -d -o nonroot -g nonroot /var/cache/dockyard
COPY --from=ecr-login /out/docker-credential-ecr-login /usr/local/bin/
COPY --from=dockyard /opt/dockyard /opt/dockyard
ENV PATH=/opt/dockyard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache
# A number, so that Kubernetes can see that it is not root. Credentials of registries: /home/nonroot/.docker/config.json.
USER 65532:65532
WORKDIR /home/nonroot
# The local tier. Give it a disk of its own: a layer that is being fetched lies here too.
VOLUME /var/cache/dockyard
EXPOSE 5000
# SIGTERM ends it, within server.drain_timeout (25 s): `docker stop --time 30`.
STOPSIGNAL SIGTERM
# It asks port 5000, or the one in SERVER_PORT or DOCKYARD_SERVER_PORT. A server with TLS, or with another port in its
# file, needs another check: --health-cmd.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request; \
port = os.environ.get('DOCKYARD_SERVER_PORT') or os.environ.get('SERVER_PORT') or '5000'; \
urllib.request.urlopen(f'http://127.0.0.1:{port}/v2/', timeout=4)"]
ENTRYPOINT ["dockyard"]
CMD ["server"]
